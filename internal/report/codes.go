package report

import (
	"maps"
	"slices"
)

// codes are what a report can say about a workload, a pod or a kind. Their numbers never change, because
// people filter by them. docs/report.md has a section for each.
var codes = map[string]string{
	codeForbidden:   "a sidecar was not asked: a permission is missing",
	codeNoAnswer:    "a sidecar has not answered",
	codeNotRun:      "a sidecar does not run",
	codeNoSidecar:   "a pod has no sidecar, although its template requests it",
	codeNoCensus:    "a sidecar counts no clients",
	codeEnded:       "a pod has started or ended while the report was made",
	codeNotRead:     "a kind could not be read",
	codeNoLog:       "a log could not be read",
	codeNoMemory:    "Prometheus does not know all pods, or knows those of several clusters",
	codeInterrupted: "the report was interrupted",
	codeOldSDK:      "a client is asking whose SDK does not support workload identity",
	codeNewSDK:      "a client is asking whose SDK supports workload identity",
	codeNoSDK:       "an unknown client is asking",
	codeTooShort:    "nobody has asked, but for a shorter time than the period",
	codeNoPod:       "no pod runs",
	codeFailed:      "token requests fail",
	codeRefused:     "requests are refused",
}

// The codes.
const (
	codeForbidden   = "IMDS401"
	codeNoAnswer    = "IMDS402"
	codeNotRun      = "IMDS403"
	codeNoSidecar   = "IMDS404"
	codeNoCensus    = "IMDS405"
	codeEnded       = "IMDS406"
	codeNotRead     = "IMDS407"
	codeNoLog       = "IMDS408"
	codeNoMemory    = "IMDS409"
	codeInterrupted = "IMDS410"
	codeOldSDK      = "IMDS411"
	codeNewSDK      = "IMDS412"
	codeNoSDK       = "IMDS413"
	codeTooShort    = "IMDS414"
	codeNoPod       = "IMDS415"
	codeFailed      = "IMDS416"
	codeRefused     = "IMDS417"
)

// Codes returns the title of each code.
func Codes() map[string]string { return maps.Clone(codes) }

func (w *Workload) code(code string) {
	if !slices.Contains(w.Codes, code) {
		w.Codes = append(w.Codes, code)
		slices.Sort(w.Codes)
	}
}
