package netrules

import (
	"os"
	"strconv"
	"strings"
)

// Bits of CapEff, from <linux/capability.h>.
const (
	capNetAdmin = 12
	capNetRaw   = 13
)

// missingCapability returns the capability that the backend needs and this process lacks:
// NET_ADMIN, or NET_RAW for legacy, which configures the kernel through a raw socket. It
// returns "" if none is missing, or if the capabilities cannot be read.
func missingCapability(backend Backend) string {
	effective, ok := effectiveCapabilities()
	switch {
	case !ok:
		return ""
	case effective&(1<<capNetAdmin) == 0:
		return "NET_ADMIN"
	case backend == Legacy && effective&(1<<capNetRaw) == 0:
		return "NET_RAW"
	}
	return ""
}

func effectiveCapabilities() (uint64, bool) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			bits, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return bits, err == nil
		}
	}
	return 0, false
}
