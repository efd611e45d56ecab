"""Asynchronous inference worker: queue to GPU server, result stored, hooks run.

This module imports nothing: Python loads it before ``__main__`` can patch the
standard library for gevent.
"""

__version__ = "0.1.0"
