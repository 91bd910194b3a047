#!/bin/sh
# Says in one line what to do if Go is missing or older than go.mod asks for. The Makefile calls it before anything is
# compiled, and src/tools.rs before it builds, so that nobody waits for minutes to read this.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
needed=$(awk '$1 == "go" { print $2; exit }' "$here/go.mod")
remedy="install Go $needed or newer from https://go.dev/dl/ and put its bin directory first in PATH"

if ! command -v go >/dev/null 2>&1; then
    echo "Go is missing, and the control plane is built with it: $remedy" >&2
    exit 1
fi
# In /, since there no go.mod asks for another toolchain. It is `go1.26.8`, or `devel go1.27-0123abc Mon …`.
found=$(cd / && GOTOOLCHAIN=local go env GOVERSION)
version=${found#*go}
if ! printf '%s %s\n' "${version%% *}" "$needed" | awk '{
    split($1, found, "."); split($2, needed, ".")
    for (i = 1; i <= 3; i++) if (found[i] + 0 != needed[i] + 0) exit found[i] + 0 < needed[i] + 0
}'; then
    echo "Go is too old ($found), go.mod asks for $needed: $remedy" >&2
    exit 1
fi
