"""Starts a program that a hangup ends, also where the tests run under nohup, which has it ignored."""

import sys

CODE = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
BEFORE = [sys.executable, "-c", CODE]  # the program and its arguments follow
