// Drivers of the Go SDKs. Each version has a mod file of its own, versions/*.mod,
// which the build is pointed at by -modfile; this one only says where the module is.
module imds-oidc-proxy/test/compat/drivers/go

go 1.26.0

require (
	github.com/golang/protobuf v1.5.2 // indirect
	github.com/hashicorp/go-uuid v1.0.2 // indirect
	github.com/hashicorp/go-version v1.3.0 // indirect
	github.com/manicminer/hamilton v0.44.0 // indirect
	golang.org/x/crypto v0.0.0-20211215153901-e495a2d5b3d3 // indirect
	golang.org/x/net v0.0.0-20211112202133-69e39bad7dc2 // indirect
	golang.org/x/oauth2 v0.0.0-20210514164344-f6687ab2804c // indirect
	google.golang.org/appengine v1.6.7 // indirect
	google.golang.org/protobuf v1.26.0 // indirect
)
