#!/bin/sh
# What tini starts: the worker (or the sub-command that is given), under ddtrace-run where FORWARDER_DDTRACE=1.
# `exec`, so that the worker itself gets the signals that tini passes on.
set -eu

traced=${FORWARDER_DDTRACE:-0}
unset FORWARDER_DDTRACE # the image's, not one of the worker's settings: it would warn of it

case $traced in
  0) exec python -m forwarder "$@" ;;
  1) exec ddtrace-run python -m forwarder "$@" ;;
esac
echo "FORWARDER_DDTRACE is '$traced': accepted are 0 and 1" >&2
exit 2
