//go:build noobjectid

package main

import "github.com/Azure/azure-sdk-for-go/sdk/azidentity"

// objectID is never called: these versions do not support object IDs, and the manifest skips
// the scenario for them.
func objectID(string) azidentity.ManagedIDKind { return nil }
