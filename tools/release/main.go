// Command release builds everything that a release consists of, without a container daemon or a
// registry: programs, images, chart, kubectl plugin, licenses, software bills of materials,
// checksums and a provenance statement. The same commit gives the same files, anywhere.
//
//	go run . [--snapshot] [--out=dist]
//	go run . --push=registry.example.test/team [--out=dist]
//
// `make release` and `make push` run it, with the Go version of releases.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program. It returns the exit code: 0, 1 for a failure, 2 for invalid arguments.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("release", flag.ContinueOnError)
	flags.SetOutput(stderr)
	repository := flags.String("repository", "../..", "`directory` of the repository")
	out := flags.String("out", "", "`directory` to write to; default: dist in the repository")
	var o options
	flags.BoolVar(&o.snapshot, "snapshot", false, "build a release from any state of the repository, and only report why it is none")
	flags.StringVar(&o.platforms, "platforms", "", "`list` of the platforms of a snapshot, such as linux/amd64,linux/arm64; default: all")
	flags.StringVar(&o.toolchain, "toolchain", "", "GOTOOLCHAIN of a snapshot, such as local; default: the `version` that go.mod names")
	flags.StringVar(&o.registry, "registry", "", "the chart's default for images.registry: the `registry` and path where the images will be published")
	flags.StringVar(&o.url, "download-url", "", "`URL` below which the archives will be published, for the krew manifest; default: releases of the GitHub repository that is git's origin")
	lock := flags.Bool("lock-debian", false, "write the newest versions of the Debian packages with iptables into "+lockFile+", instead of building")
	push := flags.String("push", "", "push the images and the chart of --out to this `registry` and path, instead of building")
	force := flags.Bool("force", false, "let --push replace tags of the registry that have another digest")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "release: unexpected argument %q\n", flags.Arg(0))
		return 2
	}
	if *out == "" {
		*out = filepath.Join(*repository, "dist")
	}
	var err error
	switch {
	case *push != "":
		err = pushAll(ctx, *out, *push, *force, stdout)
	case *lock:
		err = lockDebian(ctx, *repository)
	default:
		err = build(ctx, *repository, *out, o, stdout)
	}
	if err != nil {
		fmt.Fprintf(stderr, "release: %v\n", err)
		return 1
	}
	return 0
}

// options are the flags of a build.
type options struct {
	snapshot                            bool
	platforms, toolchain, registry, url string
}

// build writes a release into the directory out, which it replaces.
func build(ctx context.Context, repository, out string, o options, stdout io.Writer) error {
	if !o.snapshot && (o.platforms != "" || o.toolchain != "") {
		return errors.New("--platforms and --toolchain are only for --snapshot: a release has all platforms, and go.mod names its Go version")
	}
	r, err := open(ctx, repository)
	if err != nil {
		return err
	}
	r.snapshot, r.builtBy, r.registry, r.url = o.snapshot, o.toolchain, o.registry, o.url
	if r.platforms, err = parsePlatforms(o.platforms); err != nil {
		return err
	}
	if r.registry != "" {
		if err := checkRegistry("--registry", r.registry); err != nil {
			return err
		}
	}
	if err := r.setEnvironment(ctx); err != nil {
		return err
	}
	if err := r.check(ctx, o.snapshot, stdout); err != nil {
		return err
	}
	if r.platforms != nil {
		fmt.Fprintf(stdout, "%s is a snapshot, not a release: it is only for %s\n", r.version, o.platforms)
	}
	if err := r.fetchDebian(ctx); err != nil {
		if !o.snapshot {
			return err
		}
		r.debs = nil
		fmt.Fprintf(stdout, "%s is without the image %s, and its chart names %s: %v\n", r.version, iptablesImage, nativeImage, err)
	}
	r.home = r.findHome(ctx)
	if r.url == "" {
		r.url = r.home + "/releases/download/" + r.version
	}
	if r.out, err = filepath.Abs(out); err != nil {
		return err
	}
	if err := replaceable(r.out); err != nil {
		return err
	}
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"programs", r.buildPrograms},
		{"licenses", r.writeLicenses},
		{"software bills of materials", r.writeSBOMs},
		{"images", r.writeImages},
		{"chart", r.writeChart},
		{"archives", r.writeArchives},
		{"notes", r.writeNotes},
		{"checksums and provenance", r.writeSums},
	} {
		fmt.Fprintf(stdout, "%s: %s\n", r.version, step.what)
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	fmt.Fprintf(stdout, "%s: wrote %s\n", r.version, r.out)
	return nil
}

// replaceable removes the directory of an earlier release. Another directory is an error, since
// its files could be somebody's.
func replaceable(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
		return os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, marker)); err != nil {
		return fmt.Errorf("--out=%s is a directory with other files: choose an empty or a new one", dir)
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return nil
}

// marker is a file that build writes first, so that a later build recognizes the directory as its own.
const marker = ".release"
