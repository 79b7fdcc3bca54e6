"""What each command takes: a class a command, whose fields are its options (`--time-limit`) and make's variables.

Nothing but Python is needed to read these, so that `make help` works on a bare machine.
"""
