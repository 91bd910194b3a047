#!/bin/sh
# Prints one line with the remedy if Python, or its module venv, is missing or too old. The Makefile calls it before it compiles.
set -eu
remedy="install Python 3.10 or newer with its module venv (on Debian: apt-get install python3-venv)"
if ! command -v python3 >/dev/null 2>&1; then
    echo "Python is missing; the tests of the router and its tour need it: $remedy" >&2
    exit 1
fi
if ! python3 -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
    echo "$(python3 --version) is too old or has no venv: $remedy" >&2
    exit 1
fi
