# shellcheck shell=bash
# The virtual environments of this checkout. Sourced by the other scripts, from the repository's root.
#
# Every environment has a stamp: what it was made from. While that is unchanged nothing is done; otherwise
# the environment is brought to exactly the pinned packages.

export UV_PYTHON_DOWNLOADS=never # an interpreter is the user's choice, not ours to fetch
export UV_SYSTEM_CERTS=1         # as pip does: behind a company's proxy its certificate is in the system's store
export UV_NO_PROGRESS=1

UV=.venv/bin/uv
PYTHON=.venv/bin/python
STAMP=forwarder-stamp
LOCALSTACK_PINS=tests/integration/localstack-4.9.2.constraints.txt

say() { printf '==> %s\n' "$*" >&2; }

fail() { # fail EXIT_CODE LINE…
  local code=$1 line
  shift
  for line; do printf '%s: %s\n' "${0##*/}" "$line" >&2; done
  exit "$code"
}

# Print a command that runs Python 3.11 to 3.14 with the venv module; exit 2 where there is none.
find_python() {
  local candidate version seen=
  for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
    # Run it: a pyenv shim is on the PATH for versions that are not selected, too.
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    case $version in
      3.11 | 3.12 | 3.13 | 3.14) ;;
      *) seen+=" $candidate is $version." && continue ;;
    esac
    if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
    seen+=" $candidate ($version) lacks it."
  done
  fail 2 "found no Python 3.11 to 3.14 with the venv module.${seen:- There is no python3 on the PATH.}" \
    "Debian 12, Ubuntu 24.04: sudo apt-get install python3 python3-venv" \
    "Fedora: sudo dnf install python3    macOS: brew install python@3.13" \
    "Elsewhere, without root: pyenv install 3.11, or uv python install 3.11, and put it on the PATH."
}

# stamped DIR FILE…: whether DIR was made from these very files by the Python that is still there.
stamped() {
  stamp_of "$@" 2>/dev/null | cmp -s - "$1/$STAMP"
}

write_stamp() { stamp_of "$@" >"$1/$STAMP"; }

stamp_of() {
  "$1/bin/python" -V && cat "${@:2}"
}

# .venv with nothing but uv, whose version and hashes are those of requirements-dev.txt.
ensure_uv() {
  # An environment can't be moved: its scripts hold its path.
  [[ $(cat .venv/made-in 2>/dev/null) == "$PWD" ]] && "$PYTHON" -c '' && "$UV" --version >/dev/null && return
  local python
  python=$(find_python)
  say "making .venv with $("$python" -V)"
  rm -rf .venv
  "$python" -m venv .venv
  awk '/^uv==/ { inside = 1 } inside { print } inside && !/\\$/ { exit }' requirements-dev.txt >.venv/uv.txt
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r .venv/uv.txt
  printf '%s\n' "$PWD" >.venv/made-in
}

# Everything that the demo and the tests need, and the checkout itself as an editable package.
ensure_environment() {
  ensure_uv
  stamped .venv requirements-dev.txt pyproject.toml || install_pinned .venv
}

# install_pinned DIR: bring DIR to exactly requirements-dev.txt plus this checkout.
install_pinned() {
  say "installing the pinned packages into $1"
  rm -f "$1/$STAMP"
  "$UV" pip sync --quiet --python "$1/bin/python" --require-hashes requirements-dev.txt
  "$UV" pip install --quiet --python "$1/bin/python" --no-deps --no-build-isolation --editable .
  write_stamp "$1" requirements-dev.txt pyproject.toml
}

# LocalStack pins most of its dependencies, and runs on Python 3.11 only: an environment of its own.
ensure_localstack() {
  local dir=.venv-localstack
  stamped $dir $LOCALSTACK_PINS && return
  say "installing LocalStack 4.9.2 into $dir"
  rm -rf $dir
  if ! "$UV" venv --quiet --no-project --python 3.11 $dir; then
    say "no Python 3.11: there is no LocalStack here"
    return
  fi
  "$UV" pip install --quiet --python $dir/bin/python --constraints $LOCALSTACK_PINS 'localstack-core[runtime]==4.9.2'
  write_stamp $dir $LOCALSTACK_PINS
}
