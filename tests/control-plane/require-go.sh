#!/bin/sh
# Prints one line with the remedy if Go is missing or older than go.mod requires. The Makefile calls it before it compiles, and
# src/tools.rs before it builds, so that the user does not wait for minutes to read it.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
needed=$(awk '$1 == "go" { print $2; exit }' "$here/go.mod")
remedy="install Go $needed or newer from https://go.dev/dl/ and put its bin directory first in PATH"

if ! command -v go >/dev/null 2>&1; then
    echo "Go is missing; it is needed to build the control plane: $remedy" >&2
    exit 1
fi
# The directory / has no go.mod that selects another toolchain. The version is `go1.26.8`, or `devel go1.27-0123abc Mon …`.
found=$(cd / && GOTOOLCHAIN=local go env GOVERSION)
version=${found#*go}
if ! printf '%s %s\n' "${version%% *}" "$needed" | awk '{
    split($1, found, "."); split($2, needed, ".")
    for (i = 1; i <= 3; i++) if (found[i] + 0 != needed[i] + 0) exit found[i] + 0 < needed[i] + 0
}'; then
    echo "Go is too old ($found); go.mod requires $needed: $remedy" >&2
    exit 1
fi
