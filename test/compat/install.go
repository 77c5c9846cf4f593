package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sync/singleflight"
)

// A worker mounts the cache and the drivers here, because the application's user may have no
// access to the directory of the checkout.
const (
	cacheInPod   = "/mnt"
	driversInPod = "/srv"
)

// systemPython is Debian's Python. If another one comes first in PATH, it may be in a home
// directory to which the application's user has no access.
const systemPython = "/usr/bin/python3"

// program is the command that runs a driver in the pod.
type program struct {
	Command     []string
	Environment []string
}

// recipe installs one version of a library. The result depends only on the inputs, which are
// files below drivers/.
type recipe struct {
	inputs  []string
	install func(ctx context.Context, dir string) error
	// program returns the command for an installation in dir, a path in the pod.
	program func(dir string) program
}

// installer installs libraries into a cache, each under the hash of its lock.
type installer struct {
	cache, drivers string
	underway       singleflight.Group // by name, because several libraries need Node.js at the same time
}

// install installs a version of a library and returns the command that runs its driver.
func (i *installer) install(ctx context.Context, f family, l library, v version) (program, error) {
	r, err := i.recipe(ctx, f, l, v)
	if err != nil {
		return program{}, err
	}
	dir, err := i.once(ctx, l.Name+"-"+v.Version, r)
	if err != nil {
		return program{}, fmt.Errorf("install %s %s: %w", l.Name, v.Version, err)
	}
	return r.program(filepath.Join(cacheInPod, dir)), nil
}

// once installs into a directory of the cache unless it exists, and returns its name. The
// installation is atomic: the directory is complete or does not exist.
func (i *installer) once(ctx context.Context, name string, r recipe) (string, error) {
	if r.install == nil {
		return "", nil
	}
	key, err := i.hash(r.inputs)
	if err != nil {
		return "", err
	}
	name += "-" + key
	_, err, _ = i.underway.Do(name, func() (any, error) { return nil, i.installAs(ctx, name, r) })
	return name, err
}

func (i *installer) installAs(ctx context.Context, name string, r recipe) error {
	final := filepath.Join(i.cache, name)
	if _, err := os.Stat(final); err == nil {
		return nil
	}
	dir, err := os.MkdirTemp(i.cache, "partial-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // after success it has been renamed
	if err := r.install(ctx, dir); err != nil {
		return err
	}
	if err := execute(ctx, "", "chmod", "-R", "a+rX", dir); err != nil {
		return err
	}
	return os.Rename(dir, final)
}

// hash returns the hash of the platform, and of the names and contents of files. An input is
// the name of a file or of a directory below drivers/.
func (i *installer) hash(inputs []string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.GOOS, runtime.GOARCH, runtime.Version())
	for _, input := range inputs {
		err := filepath.WalkDir(filepath.Join(i.drivers, input), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			content, err := os.ReadFile(path)
			fmt.Fprintf(h, "%s %d\n", strings.TrimPrefix(path, i.drivers), len(content))
			h.Write(content)
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:6]), nil
}

func (i *installer) recipe(ctx context.Context, f family, l library, v version) (recipe, error) {
	lock := "versions/" + l.Name + "-" + v.Version
	switch f.Name {
	case "go":
		return i.goRecipe(l, v, lock), nil
	case "node":
		return i.nodeRecipe(ctx, l, lock)
	case "python", "azurecli":
		return i.pythonRecipe(ctx, f, l, v, lock)
	case "java":
		return i.javaRecipe(l, lock), nil
	case "rust":
		return i.rustRecipe(lock), nil
	case "shell", "ruby":
		script := filepath.Join(driversInPod, f.Name, l.Driver)
		return recipe{program: func(string) program { return program{Command: []string{script}} }}, nil
	}
	return recipe{}, fmt.Errorf("no recipe for the family %s", f.Name)
}

func (i *installer) goRecipe(l library, v version, lock string) recipe {
	return recipe{
		inputs: []string{"go/protocol", "go/" + l.Driver, "go/" + lock + ".mod", "go/" + lock + ".sum"},
		install: func(ctx context.Context, dir string) error {
			return execute(ctx, filepath.Join(i.drivers, "go"), "go", "build", "-buildvcs=false",
				"-modfile="+lock+".mod", "-tags="+v.Tags, "-o", filepath.Join(dir, "driver"), "./"+l.Driver)
		},
		program: func(dir string) program { return program{Command: []string{filepath.Join(dir, "driver")}} },
	}
}

// nodeRecipe runs every version with the same Node.js, which is installed from the lock file
// versions/runtime, because the newest SDK needs a newer one than Debian has.
func (i *installer) nodeRecipe(ctx context.Context, l library, lock string) (recipe, error) {
	nodeDir, err := i.once(ctx, "node-runtime", i.npmRecipe("versions/runtime"))
	if err != nil {
		return recipe{}, fmt.Errorf("install Node.js: %w", err)
	}
	node := filepath.Join(cacheInPod, nodeDir, "node_modules", "node-linux-"+npmArchitecture(), "bin", "node")
	r := i.npmRecipe(lock)
	r.program = func(dir string) program {
		return program{
			Command:     []string{node, filepath.Join(driversInPod, "node", l.Driver)},
			Environment: []string{"NODE_PATH=" + filepath.Join(dir, "node_modules")},
		}
	}
	return r, nil
}

func npmArchitecture() string {
	if runtime.GOARCH == "amd64" {
		return "x64"
	}
	return runtime.GOARCH
}

// npmRecipe runs no install scripts, because the packages that need them, such as keytar, are
// not used for managed identity.
func (i *installer) npmRecipe(lock string) recipe {
	return recipe{
		inputs: []string{"node/" + lock},
		install: func(ctx context.Context, dir string) error {
			if err := os.CopyFS(dir, os.DirFS(filepath.Join(i.drivers, "node", lock))); err != nil {
				return err
			}
			return execute(ctx, dir, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
		},
	}
}

func (i *installer) pythonRecipe(ctx context.Context, f family, l library, v version, lock string) (recipe, error) {
	driver := filepath.Join(driversInPod, f.Name, l.Driver)
	if v.System != nil {
		return recipe{program: func(string) program { return program{Command: []string{systemPython, driver}} }}, nil
	}
	// All environments share this pip, because it takes longer to install than the libraries.
	pip, err := i.once(ctx, "pip", recipe{install: func(ctx context.Context, dir string) error {
		return execute(ctx, "", systemPython, "-m", "venv", dir)
	}})
	if err != nil {
		return recipe{}, fmt.Errorf("install pip: %w", err)
	}
	return recipe{
		inputs: []string{f.Name + "/" + lock + ".txt"},
		install: func(ctx context.Context, dir string) error {
			if err := execute(ctx, "", systemPython, "-m", "venv", "--without-pip", dir); err != nil {
				return err
			}
			return execute(ctx, "", filepath.Join(i.cache, pip, "bin", "python"), "-m", "pip", "--python", filepath.Join(dir, "bin", "python"), "install", "--quiet",
				"--disable-pip-version-check", "--no-deps", "--require-hashes", "-r", filepath.Join(i.drivers, f.Name, lock+".txt"))
		},
		program: func(dir string) program {
			return program{
				Command:     []string{filepath.Join(dir, "bin", "python"), driver},
				Environment: []string{"PYTHONPATH=" + filepath.Join(driversInPod, "python")}, // protocol.py
			}
		},
	}, nil
}

func (i *installer) javaRecipe(l library, lock string) recipe {
	class := strings.TrimSuffix(l.Driver, ".java")
	sources := []string{"java/Protocol.java", "java/" + l.Driver}
	return recipe{
		inputs: append([]string{"java/" + lock}, sources...),
		install: func(ctx context.Context, dir string) error {
			lib := filepath.Join(dir, "lib")
			if err := execute(ctx, filepath.Join(i.drivers, "java", lock), "mvn", "--quiet", "--batch-mode",
				"dependency:copy-dependencies", "-DoutputDirectory="+lib); err != nil {
				return err
			}
			compile := []string{"-nowarn", "-cp", lib + "/*", "-d", filepath.Join(dir, "classes")}
			for _, source := range sources {
				compile = append(compile, filepath.Join(i.drivers, source))
			}
			return execute(ctx, "", "javac", compile...)
		},
		program: func(dir string) program {
			return program{Command: []string{"java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", dir + "/classes:" + dir + "/lib/*", class}}
		},
	}
}

func (i *installer) rustRecipe(lock string) recipe {
	return recipe{
		inputs: []string{"rust/src", "rust/" + lock},
		install: func(ctx context.Context, dir string) error {
			// Each lock has its own directory, because all drivers have the same name.
			target := filepath.Join(i.cache, "rust-target", filepath.Base(lock))
			if err := execute(ctx, filepath.Join(i.drivers, "rust", lock), "cargo", "build", "--quiet", "--locked", "--target-dir", target); err != nil {
				return err
			}
			return os.Rename(filepath.Join(target, "debug", "driver"), filepath.Join(dir, "driver"))
		},
		program: func(dir string) program { return program{Command: []string{filepath.Join(dir, "driver")}} },
	}
}

// execute runs a command outside the pod. The error has the end of its output.
func execute(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); exited {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, lastLines(out.Bytes()))
	}
	return err
}

// lastLines returns the end of a command's output.
func lastLines(out []byte) []byte {
	const most = 4 << 10
	return out[max(0, len(out)-most):]
}
