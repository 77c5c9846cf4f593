// Package netrules plans, applies, proves and removes the redirect of the
// metadata address to the proxy.
package netrules
