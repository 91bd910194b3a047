// Serves Git repositories. It needs no module but the standard library.
module switchboard.dev/git-server

go 1.26.0
