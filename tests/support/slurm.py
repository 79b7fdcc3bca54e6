"""A real SLURM on this machine alone: Debian's slurm-wlm and munge, a controller and two nodes on 127.0.0.1."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.dask_processes import kill, wait_until
from tests.support.paths import ROOT
from tests.support.ports import free_ports

NODES = ("n1", "n2")
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "setpriv")
_WITH_US = ("setpriv", "--pdeathsig=KILL")  # also where the tests are killed
_PLACES = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
_CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={d}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d-%n.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge=3600
KillWait=20
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n1} CPUs=32 RealMemory=64000 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n2} CPUs=32 RealMemory=64000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=20 State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF State=UP
PartitionName=short Nodes=ALL MaxTime=5 State=UP
PartitionName=pathology Nodes=ALL MaxTime=12:00:00 State=UP
"""
"""More CPUs and memory than the machine may have: jobs share what there is."""


class Slurm:
    """Its daemons; use as a context, which ends them and all jobs. Skips the test, with the reason, where it cannot be.

    `environment` leads SLURM's commands to it.
    """

    def __init__(self, folder):
        self.folder = folder
        if missing := [name for name in _PROGRAMS if shutil.which(name, path=_PLACES) is None]:
            pytest.skip(f"needs SLURM: apt-get install slurm-wlm munge ({missing[0]} is not on the PATH)")
        self._conf = folder / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self._conf), "PATH": _PLACES}
        self._daemons = []

    def __enter__(self):
        try:
            self._start()
        except AssertionError as never:
            said = {name: _last_lines(self.folder / "log" / name) for name in ("munged", "slurmctld", "slurmd-n1")}
            self.__exit__()
            pytest.skip(f"SLURM does not start here ({never}): {said}")
        return self

    def __exit__(self, *_):
        for daemon in reversed(self._daemons):
            kill(daemon)
        for place in Path("/proc").glob("[0-9]*/environ"):  # those that watch over jobs leave their daemon
            with contextlib.suppress(OSError):
                if str(self._conf).encode() in place.read_bytes():
                    os.kill(int(place.parent.name), signal.SIGKILL)

    def _start(self):
        for name in ("state", "log", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        user = pwd.getpwuid(os.getuid()).pw_name
        ports = dict(zip(("ctld", "d", *NODES), free_ports(2 + len(NODES)), strict=True))
        self._conf.write_text(_CONF.format(folder=self.folder, user=user, **ports))
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = {"key-file": key, "socket": self.folder / "munge.socket", "pid-file": self.folder / "munge.pid"}
        files |= {"log-file": self.folder / "log/munged", "seed-file": self.folder / "munge.seed"}
        munged = self._daemon("munged", "--foreground", "--force", *(f"--{n}={p}" for n, p in files.items()))
        wait_until(files["socket"].exists, munged, seconds=20)
        self._daemon("slurmctld", "-D", "-f", self._conf)
        for node in NODES:
            self._daemon("slurmd", "-D", "-f", self._conf, "-N", node)
        wait_until(lambda: self.nodes() == dict.fromkeys(NODES, "idle"), *self._daemons, seconds=40, every=0.2)

    def _daemon(self, name, *arguments):
        program = shutil.which(name, path=_PLACES)
        log = (self.folder / "log" / f"{name}-{len(self._daemons)}.out").open("w")
        process = subprocess.Popen(
            [*_WITH_US, program, *map(str, arguments)],
            env={**os.environ, **self.environment},
            start_new_session=True,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        self._daemons.append(process)
        return process

    def ask(self, *command, check=True):
        """What one of SLURM's commands prints."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout.strip()

    def nodes(self):
        """Each node's state, as sinfo names it."""
        lines = self.ask("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %t", check=False)
        return dict(line.split() for line in lines.splitlines())

    def jobs(self, *states):
        """{id: (state, nodes)} of all jobs since it was started, or of those in these states."""
        lines = self.ask("squeue", "--noheader", "--states=all", "--array", "--format=%i|%T|%N", check=False)
        found = {number: (state, nodes) for number, state, nodes in (line.split("|") for line in lines.splitlines())}
        return {number: job for number, job in found.items() if not states or job[0] in states}

    def update(self, *what):
        """scontrol update."""
        self.ask("scontrol", "update", *what)

    def about(self, number):
        """All that scontrol knows of a job."""
        words = self.ask("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, number):
        """A job's; "" where SLURM does not know it."""
        return self.jobs().get(number, ("", ""))[0]

    def at_once(self, number):
        """Start a job that was queued again, which SLURM holds back for two minutes."""
        wait_until(lambda: self.state(number) == "PENDING", seconds=100, every=0.2)
        self.update(f"jobid={number}", "starttime=now+3")  # in the same second, its nodes would refuse it

    def submit(self, file, folder, *options, **told):
        """sbatch of one of docs/slurm, from this folder, with these variables; returns the job's number."""
        return self._submit(folder, [*options, str(ROOT / "docs/slurm" / file)], told)

    def submit_line(self, line, folder, *options):
        """sbatch of one line of shell."""
        return self._submit(folder, [*options, f"--wrap={line}"], {})

    def _submit(self, folder, words, told):
        program = folder / "bin" / "mixmag"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipelines.mixmag "$@"\n')
        program.chmod(0o755)
        environment = {**os.environ, **self.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment |= {name: str(value) for name, value in told.items()}
        environment["PATH"] = f"{program.parent}{os.pathsep}{environment['PATH']}"
        done = subprocess.run(
            ["sbatch", "--parsable", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def tidy(self):
        """End all jobs, and open every node and partition again."""
        self.ask("scancel", "--user", pwd.getpwuid(os.getuid()).pw_name)
        self.ask("scancel", "--signal=KILL", "--full", "--user", pwd.getpwuid(os.getuid()).pw_name, check=False)
        for node in NODES:
            self.ask("scontrol", "update", f"nodename={node}", "state=RESUME", check=False)
        self.update("partitionname=main", "state=UP")
        wait_until(lambda: set(self.nodes().values()) == {"idle"}, *self._daemons, seconds=60, every=0.2)


def _last_lines(log):
    return log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
