// git-server serves the repositories below a directory over HTTP, by `git http-backend`. Clients can only read.
//
//	git-server ADDRESS DIRECTORY
package main

import (
	"log"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: git-server ADDRESS DIRECTORY")
	}
	git, err := exec.LookPath("git")
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.ListenAndServe(os.Args[1], &cgi.Handler{
		Path: git,
		Args: []string{"http-backend"},
		Env: []string{
			"GIT_PROJECT_ROOT=" + os.Args[2],
			"GIT_HTTP_EXPORT_ALL=1",
			// The settings of the user must not change the answers.
			"GIT_CONFIG_NOSYSTEM=1",
			"GIT_CONFIG_GLOBAL=/dev/null",
		},
	}))
}
