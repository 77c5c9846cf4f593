// Package images builds the container images with `make images`, on stand-in base
// images made of Debian packages, and loads those of a release. It runs the images of a pod as the kubelet would: the proxy
// as user 1501, with a read-only root file system and no capability, and proxy-init with
// NET_ADMIN only.
//
// Its tests need root, buildah, podman and runc. So they have the build tag images, and
// `make test-images` runs them.
package images
