package entra_test

import (
	"testing"

	"imds-oidc-proxy/test/kit/entra"
)

// BenchmarkExchange measures the time of this server for one exchange, to subtract it from a
// benchmark of the proxy or a simulation of many pods.
func BenchmarkExchange(b *testing.B) {
	b.Run("RS256", func(b *testing.B) { benchmarkExchange(b, entra.Config{}) })
	b.Run("quick tokens", func(b *testing.B) { benchmarkExchange(b, entra.Config{QuickTokens: true}) })
}

func benchmarkExchange(b *testing.B, cfg entra.Config) {
	cfg.Keys = testKeys
	idp, err := entra.New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	idp.AddApplication(testApplication())
	form, client := goodForm(idp), idp.Client()
	if got := observe(b.Context(), client, idp.TokenURL(), form); got.status != 200 {
		b.Fatalf("observed %+v", got)
	}
	b.ReportAllocs()
	for b.Loop() {
		observe(b.Context(), client, idp.TokenURL(), form)
	}
}
