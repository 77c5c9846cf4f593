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
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"imds-oidc-proxy/internal/inject"
)

// admitTimeout is the maximum timeout of one request. It is shorter than the API server's timeout, which
// is 10 s in the chart (timeoutSeconds), so that the API server gets the webhook's error.
const admitTimeout = 8 * time.Second

// accountReader reads a service account. If there is none, apierrors.IsNotFound is true for the
// error.
type accountReader interface {
	// again is true if the pod may have been answered a moment ago, from the same account.
	account(ctx context.Context, namespace, name string, again bool) (*corev1.ServiceAccount, error)
}

// admitter answers the API server's requests. It has no side effects, so it handles a dry run like
// other requests.
type admitter struct {
	accounts accountReader
	decoder  admission.Decoder
	config   func() inject.Config // the current configuration
	metrics  *metrics
	log      *zap.Logger
	now      func() time.Time
}

// The results of a request, which are also the values of a metric's label.
const (
	resultInjected  = "injected"  // the response has a patch
	resultUnchanged = "unchanged" // the pod has the label, and needs no change
	resultSkipped   = "skipped"   // the pod does not have the label, or this is not a new pod
	resultRefused   = "refused"   // the pod's author must change something
	resultError     = "error"     // the webhook failed
)

// answer is the result of a request, for the API server, the metrics and the log.
type answer struct {
	result   string
	patch    []inject.Operation
	warnings []string
	message  string // of a refusal, for the pod's author
	account  string
	err      error // for the log only
}

// Handle implements [admission.Handler].
func (a *admitter) Handle(ctx context.Context, req admission.Request) admission.Response {
	started := a.now()
	result := a.answerSafely(ctx, req)
	response, err := result.response(req)
	if err != nil {
		result = answer{result: resultError, err: err}
		response, _ = result.response(req)
	}
	took := a.now().Sub(started)
	a.metrics.observe(result.result, took)
	a.report(req, result, took)
	return response
}

// answerSafely recovers from a panic, which must not end the process that the whole cluster uses,
// and must not be shown to the pod's author. The value of the panic may contain values of the
// pod, so the error has only its type and the stack.
func (a *admitter) answerSafely(ctx context.Context, req admission.Request) (result answer) {
	defer func() {
		if r := recover(); r != nil {
			result = answer{result: resultError, err: fmt.Errorf("panic of type %T at %s", r, debug.Stack())}
		}
	}()
	return a.answer(ctx, req)
}

func (a *admitter) answer(ctx context.Context, req admission.Request) answer {
	if req.UID == "" {
		return answer{result: resultRefused, message: "the request is not an AdmissionReview with a request"}
	}
	if req.Operation != admissionv1.Create || req.Kind != (metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}) || req.SubResource != "" {
		return answer{result: resultSkipped}
	}
	// Unknown fields are accepted, since they may be newer than these types. They stay in the
	// pod, because the patch changes single fields.
	pod := new(corev1.Pod)
	if err := a.decoder.Decode(req, pod); err != nil {
		return answer{result: resultRefused, message: "the request does not contain a valid pod"}
	}
	// Before the service account is read, since a mirror pod has none.
	if warnings, skipped := inject.Skipped(pod); skipped {
		return answer{result: resultSkipped, warnings: warnings}
	}
	name := accountName(pod)
	account, err := a.accounts.account(ctx, req.Namespace, name, inject.HasToken(pod))
	if apierrors.IsNotFound(err) {
		return answer{result: resultRefused, account: name,
			message: fmt.Sprintf("spec.serviceAccountName: there is no service account %s in namespace %s; create it before the pod", shortened(name), req.Namespace)}
	}
	if err != nil {
		return answer{result: resultError, account: name, err: fmt.Errorf("reading the service account: %w", err)}
	}
	result := a.injection(ctx, pod, account)
	result.account = name
	return result
}

func (a *admitter) injection(ctx context.Context, pod *corev1.Pod, account *corev1.ServiceAccount) answer {
	result, err := inject.PodContext(ctx, pod, account, a.config())
	result.Warnings = atMost(result.Warnings)
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

// maxWarnings is the maximum number of warnings for one pod. The API server drops those beyond 4 KiB,
// and a line of the log should be readable.
const maxWarnings = 20

func atMost(warnings []string) []string {
	if len(warnings) <= maxWarnings {
		return warnings
	}
	return append(warnings[:maxWarnings:maxWarnings], fmt.Sprintf("%d more warnings", len(warnings)-maxWarnings))
}

// accountName returns the name of the pod's service account. The API server sets it before it
// calls webhooks, unless its admission plugin ServiceAccount is disabled.
func accountName(pod *corev1.Pod) string { return cmp.Or(pod.Spec.ServiceAccountName, "default") }

// shortened returns a name from a pod, which the API server has not validated yet, cut to the maximum
// length of a valid name.
func shortened(name string) string {
	if len(name) <= validation.DNS1123SubdomainMaxLength {
		return name
	}
	return name[:validation.DNS1123SubdomainMaxLength] + "…"
}

// response returns the response for the API server. The code distinguishes an error of the webhook
// from a refusal. The message of an error contains no internal details.
func (r answer) response(req admission.Request) (admission.Response, error) {
	switch r.result {
	case resultRefused:
		return denied(http.StatusBadRequest, metav1.StatusReasonBadRequest, r.message), nil
	case resultError:
		return denied(http.StatusInternalServerError, metav1.StatusReasonInternalError,
			fmt.Sprintf("the webhook failed; its log has the cause, with request_id %s", req.UID)), nil
	}
	response := admission.Allowed("").WithWarnings(r.warnings...)
	if len(r.patch) == 0 {
		return response, nil
	}
	patch, err := json.Marshal(r.patch)
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

// report logs one line for each request. Skipped pods are logged at debug level.
func (a *admitter) report(req admission.Request, r answer, took time.Duration) {
	fields := []zap.Field{
		zap.String("namespace", req.Namespace), zap.String("pod", shortened(podName(req))), zap.String("service_account", shortened(r.account)),
		zap.String("result", r.result), zap.Bool("dry_run", req.DryRun != nil && *req.DryRun),
		zap.Duration("duration", took), zap.String("request_id", string(req.UID)),
	}
	switch r.result {
	case resultSkipped:
		a.log.Debug("pod skipped", fields...)
	case resultRefused:
		a.log.Warn("pod refused", append(fields, zap.String("message", r.message))...)
	case resultError:
		a.log.Error("admission failed", append(fields, zap.Error(r.err))...)
	default:
		if len(r.warnings) > 0 {
			fields = append(fields, zap.Strings("warnings", r.warnings))
		}
		a.log.Info("pod admitted", append(fields, zap.Int("operations", len(r.patch)))...)
	}
}

// podName returns the name of the pod for the log. A controller's pod has no name yet, only the
// prefix of its name.
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
