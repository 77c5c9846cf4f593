// Redirectpod is both ends of the redirect tests: it holds a pod-like network
// namespace with decoys on every address that a client might reach, and it is the
// client that says who answered.
package main

func main() {}
