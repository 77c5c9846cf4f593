package netns

import (
	"fmt"
	"os"
)

// RunTests runs the tests of m in a new network namespace and returns the exit code
// for TestMain. In the process outside, it calls prepare, which does the work that
// needs the network outside and returns environment variables for the process inside.
// dir is a directory for prepare that every user can read; RunTests removes it when
// the process inside has exited. Messages of RunTests begin with name.
func RunTests(name string, m interface{ Run() int }, prepare func(dir string) (env []string, err error)) int {
	return runTests(name, m, prepare, func(env []string) (int, error) {
		_, code, err := Enter(false, env...)
		return code, err
	})
}

func runTests(name string, m interface{ Run() int }, prepare func(string) ([]string, error), enter func([]string) (int, error)) int {
	if Inside() {
		if code, err := enter(nil); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			return code
		}
		return m.Run()
	}
	if os.Getuid() != 0 {
		fmt.Fprintf(os.Stderr, "%s: run as root: these tests make a network namespace and run programs as several users\n", name)
		return 1
	}
	code, err := prepareAndEnter(name, prepare, enter)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	}
	return code
}

func prepareAndEnter(name string, prepare func(string) ([]string, error), enter func([]string) (int, error)) (exitCode int, err error) {
	dir, err := os.MkdirTemp("", name+"-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return 1, err
	}
	env, err := prepare(dir)
	if err != nil {
		return 1, err
	}
	return enter(env)
}
