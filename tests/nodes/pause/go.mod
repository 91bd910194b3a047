// The first process of a pod's sandbox, and of a node. It needs no module but the standard library.
module switchboard.dev/pause

go 1.26.0
