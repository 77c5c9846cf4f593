package imds

import (
	"crypto/subtle"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// serveAppService answers a request in the managed identity protocol of Azure App Service, as
// SDKs send it if IDENTITY_ENDPOINT or MSI_ENDPOINT is set. It needs no redirect, and clients
// that ignore AZURE_POD_IDENTITY_AUTHORITY_HOST speak it. Without Config.AppServiceHeader the
// path is one that is not found.
//
// The protocol has two versions, which differ in the name of the header, and not always in the
// variable: mssql-jdbc 8.4 to 11.2 sends the header of 2019-08-01 to MSI_ENDPOINT. So one path
// serves both. Its queries have the form of IMDS and are read by the same rules.
func (h *Handler) serveAppService(w http.ResponseWriter, r *http.Request, path string) {
	if len(h.appServiceHeader) == 0 {
		h.serve(w, r, EndpointOwn, r.URL.Path, h.other)
		return
	}
	h.serve(w, r, EndpointAppService, path, func(w http.ResponseWriter, r *http.Request, o *outcome) error {
		o.dates = readsDatesOnly(r.Header)
		return h.answerToken(w, r, o, h.checkSecretHeader)
	})
}

// The headers with the secret, in the form of the keys of [http.Header].
const (
	header2019 = "X-Identity-Header"
	header2017 = "Secret"
)

// checkSecretHeader requires the header that a request by SSRF cannot have: its value is
// different in each pod. Two such headers are refused even if both are right, because two
// parsers could choose different ones.
func (h *Handler) checkSecretHeader(r *http.Request) error {
	newer, older := r.Header[header2019], r.Header[header2017]
	given := newer
	if len(newer) == 0 {
		given = older
	}
	switch {
	case len(given) == 0:
		return errNoSecretHeader
	case len(newer)+len(older) > 1:
		return refused(errWrongSecretHeader, "there are several of these headers")
	case subtle.ConstantTimeCompare([]byte(given[0]), h.appServiceHeader) != 1:
		return refused(errWrongSecretHeader, "the value is not that of --app-service-header")
	}
	return refuseForeign(r)
}

// appServiceDate is the form of expires_on in App Service's answers of version 2017-09-01.
const appServiceDate = "01/02/2006 15:04:05 -07:00"

// readsDatesOnly reports whether a client reads expires_on only as a date. All other clients
// read seconds, and many of them no date.
//
//   - azure-identity (Python) 1.5 raises ValueError, in version 2017-09-01
//     (_credentials/app_service.py).
//   - @azure/identity (Node) 1 and 2 read NaN, and would then use the token forever
//     (appServiceMsi2017.ts, appServiceMsi2019.ts: Date.parse). The first versions send only the
//     name of their HTTP client, core-http, and know only version 2017-09-01.
func readsDatesOnly(header http.Header) bool {
	agent := header.Get("User-Agent")
	sends := func(product string) bool { return strings.Contains(agent, product) }
	if older := len(header[header2017]) > 0; older && (sends("azsdk-python-identity/1.5.") || sends("core-http/1.")) {
		return true
	}
	return sends("azsdk-js-identity/1.") || sends("azsdk-js-identity/2.")
}

// appendExpiry appends a time in seconds since 1970, or as a date.
func appendExpiry(b []byte, t time.Time, date bool) []byte {
	if date {
		return t.UTC().AppendFormat(b, appServiceDate)
	}
	return strconv.AppendInt(b, t.Unix(), 10)
}

// appendAppServiceError appends the body of an error response of App Service, followed by the
// members of IMDS. MSAL for Python shows statusCode and message, and for IMDS's members alone
// "None, None"; @azure/identity (Node) shows error and error_description.
func appendAppServiceError(b []byte, a answer) []byte {
	b = append(b, `{"statusCode":`...)
	b = strconv.AppendInt(b, int64(a.status), 10)
	b = append(b, `,"message":`...)
	b = appendJSONString(b, a.description)
	return append(append(b, ','), appendError(nil, a)[1:]...)
}
