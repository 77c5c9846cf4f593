package report_test

import "testing"

// TestGroup checks that a workload has its API group: kinds of two groups may have the same name.
func TestGroup(t *testing.T) {
	r := run(t, cluster(sidecar("web", "aaaaa", 40*day, ""), "web"), &executor{answers: map[string]string{"web-5d4f-aaaaa": census()}}, nil)
	if len(r.Workloads) != 1 || r.Workloads[0].Group != "apps" {
		t.Errorf("got %+v", r.Workloads)
	}
}
