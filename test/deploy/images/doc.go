// Package images builds both container images with `make images`, on stand-in bases
// made of Debian packages, and runs them as a pod would: the proxy as 1501 with a
// read-only root file system and no capability, proxy-init with NET_ADMIN alone.
//
// Its tests take root, buildah, podman and runc, and so have the build tag images:
// `make test-images` runs them.
package images
