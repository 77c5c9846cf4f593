// Package images builds the container images with `make images`, on base images from Debian
// packages, and runs them as in a pod: the proxy as user 1501 with a read-only root file system and
// without capabilities, proxy-init with only NET_ADMIN.
//
// The tests need root, buildah, podman and runc, so they have the build tag images. `make
// test-images` runs them.
package images
