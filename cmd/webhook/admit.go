package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"time"

	"go.uber.org/zap"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"imds-oidc-proxy/internal/inject"
)

// admitTimeout is for one answer. The API server waits for timeoutSeconds of its
// configuration, which is 10 s in the chart: an answer of ours that says what is
// wrong has to come before.
const admitTimeout = 8 * time.Second

// accountReader finds a service account. What is not there is an error that
// apierrors.IsNotFound knows.
type accountReader interface {
	account(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error)
}

// admitter answers the API server's questions about pods. It changes nothing
// anywhere, so that a dry run needs no care.
type admitter struct {
	accounts accountReader
	decoder  admission.Decoder
	config   func() inject.Config // as it holds now
	metrics  *metrics
	log      *zap.Logger
	now      func() time.Time
}

// What became of a request. They are values of a metric's label: there are no
// others.
const (
	resultInjected  = "injected"  // there is a patch
	resultUnchanged = "unchanged" // the pod takes part, and has all that it needs
	resultSkipped   = "skipped"   // the pod takes no part, or this is no new pod
	resultRefused   = "refused"   // the pod's author has to change something
	resultError     = "error"     // it is not the pod's fault
)

// answer is what becomes of a request, for its three readers: the API server, the
// metrics and the log.
type answer struct {
	result   string
	patch    []inject.Operation
	warnings []string
	message  string // for the pod's author, of a refusal
	account  string
	err      error // for the log alone
}

// Handle implements [admission.Handler].
func (a *admitter) Handle(ctx context.Context, req admission.Request) admission.Response {
	started := a.now()
	ctx, cancel := context.WithTimeout(ctx, admitTimeout)
	defer cancel()
	given := a.answerSafely(ctx, req)
	response, err := given.response(req)
	if err != nil {
		given = answer{result: resultError, err: err}
		response, _ = given.response(req)
	}
	took := a.now().Sub(started)
	a.metrics.observe(given.result, took)
	a.report(req, given, took)
	return response
}

// answerSafely keeps a panic from ending the process, which the whole cluster
// shares, and from reaching the pod's author. What it says may hold values of the
// pod, so the log has only where it was.
func (a *admitter) answerSafely(ctx context.Context, req admission.Request) (given answer) {
	defer func() {
		if r := recover(); r != nil {
			given = answer{result: resultError, err: fmt.Errorf("panic of type %T at %s", r, debug.Stack())}
		}
	}()
	return a.answer(ctx, req)
}

func (a *admitter) answer(ctx context.Context, req admission.Request) answer {
	if req.UID == "" {
		return answer{result: resultRefused, message: "this is no AdmissionReview with a request"}
	}
	if req.Operation != admissionv1.Create || req.Kind != (metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}) || req.SubResource != "" {
		return answer{result: resultSkipped}
	}
	// Leniently: a field that is newer than these types is no reason to refuse, and
	// stays in the pod, since the patch names single fields.
	pod := new(corev1.Pod)
	if err := a.decoder.Decode(req, pod); err != nil {
		return answer{result: resultRefused, message: "the request holds no pod that can be read"}
	}
	// Before the service account is looked for, which a mirror pod has none of.
	if warnings, skipped := inject.Skipped(pod); skipped {
		return answer{result: resultSkipped, warnings: warnings}
	}
	name := accountName(pod)
	account, err := a.accounts.account(ctx, req.Namespace, name)
	if apierrors.IsNotFound(err) {
		return answer{result: resultRefused, account: name,
			message: fmt.Sprintf("spec.serviceAccountName: there is no service account %s in namespace %s; create it before the pod", name, req.Namespace)}
	}
	if err != nil {
		return answer{result: resultError, account: name, err: fmt.Errorf("reading the service account: %w", err)}
	}
	given := a.injection(pod, account)
	given.account = name
	return given
}

func (a *admitter) injection(pod *corev1.Pod, account *corev1.ServiceAccount) answer {
	result, err := inject.Pod(pod, account, a.config())
	switch refusal, refused := errors.AsType[*inject.Refusal](err); {
	case refused:
		return answer{result: resultRefused, message: refusal.Error()}
	case err != nil:
		return answer{result: resultError, err: err}
	case len(result.Patch) == 0:
		return answer{result: resultUnchanged, warnings: result.Warnings}
	}
	return answer{result: resultInjected, patch: result.Patch, warnings: result.Warnings}
}

// accountName is the pod's service account; API servers have put it in before they
// ask, unless their ServiceAccount admission is off.
func accountName(pod *corev1.Pod) string { return cmp.Or(pod.Spec.ServiceAccountName, "default") }

// response is what the API server reads. An error of this program's own is told
// apart from a refusal by its code, and says nothing of what is inside.
func (g answer) response(req admission.Request) (admission.Response, error) {
	switch g.result {
	case resultRefused:
		return denied(http.StatusBadRequest, metav1.StatusReasonBadRequest, g.message), nil
	case resultError:
		return denied(http.StatusInternalServerError, metav1.StatusReasonInternalError,
			fmt.Sprintf("the webhook could not decide about this pod; its log has the cause, with request_id %s", req.UID)), nil
	}
	response := admission.Allowed("").WithWarnings(g.warnings...)
	if len(g.patch) == 0 {
		return response, nil
	}
	patch, err := json.Marshal(g.patch)
	if err != nil {
		return response, fmt.Errorf("encoding the patch: %w", err)
	}
	kind := admissionv1.PatchTypeJSONPatch
	response.Patch, response.PatchType = patch, &kind
	return response, nil
}

func denied(code int32, reason metav1.StatusReason, message string) admission.Response {
	return admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{
		Allowed: false,
		Result:  &metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message},
	}}
}

// report writes one line for each pod that takes part.
func (a *admitter) report(req admission.Request, given answer, took time.Duration) {
	fields := []zap.Field{
		zap.String("namespace", req.Namespace), zap.String("pod", podName(req)), zap.String("service_account", given.account),
		zap.String("result", given.result), zap.Bool("dry_run", req.DryRun != nil && *req.DryRun),
		zap.Duration("duration", took), zap.String("request_id", string(req.UID)),
	}
	switch given.result {
	case resultSkipped:
		a.log.Debug("pod takes no part", fields...)
	case resultRefused:
		a.log.Warn("pod refused", append(fields, zap.String("message", given.message))...)
	case resultError:
		a.log.Error("pod not decided about", append(fields, zap.Error(given.err))...)
	default:
		if len(given.warnings) > 0 {
			fields = append(fields, zap.Strings("warnings", given.warnings))
		}
		a.log.Info("pod admitted", append(fields, zap.Int("operations", len(given.patch)))...)
	}
}

// podName is what the log calls the pod: those of a controller have no name yet when
// the API server asks, but what their names begin with.
func podName(req admission.Request) string {
	if req.Name != "" {
		return req.Name
	}
	var named metav1.PartialObjectMetadata
	if json.Unmarshal(req.Object.Raw, &named) != nil {
		return ""
	}
	return named.GenerateName + named.Name
}
