"""What is watched while a run goes on: signals, steps that go wrong, health, pictures and probes."""
