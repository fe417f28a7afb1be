package tasks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/request"
)

// Config says what a Server works with. All fields must be set.
type Config struct {
	// Control is how to reach the cluster with the objects, as the broker itself.
	Control *rest.Config
	// Index tells how many grants an agent has.
	Index *authz.Index
	// Release ends a grant (control.Controller).
	Release func(ctx context.Context, name, uid, resourceVersion string) error
	Now     func() time.Time
}

// Server serves all agents. Safe for concurrent use.
type Server struct {
	client  *http.Client
	base    *url.URL
	release func(ctx context.Context, name, uid, resourceVersion string) error
	quota   quota
}

// New makes a server. It makes no calls.
func New(config Config) (*Server, error) {
	own := rest.CopyConfig(config.Control)
	own.UserAgent = rest.DefaultKubernetesUserAgent()
	client, err := rest.HTTPClientFor(own)
	if err != nil {
		return nil, fmt.Errorf("making a client for the objects of agents: %w", err)
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	base, _, err := rest.DefaultServerUrlFor(own)
	if err != nil {
		return nil, fmt.Errorf("reading the address of the control cluster: %w", err)
	}
	base.Path = strings.TrimSuffix(base.Path, "/")
	return &Server{client: client, base: base, release: config.Release, quota: quota{index: config.Index, now: config.Now, accounts: map[string]*account{}}}, nil
}

// Ask is what an agent wants; package authz has allowed it.
type Ask struct {
	Agent    string   // SPIFFE ID, from the SVID
	Policies []string // names of the AgentPolicies that are about the agent
	Request  *request.Request
	Accept   string // the agent's Accept header
	AuditID  string
}

// Call is an Ask that was understood. Close has to be called.
type Call struct {
	server *Server
	ask    Ask
	view   view
	query  url.Values
	// body is what is created, nil for other calls.
	body []byte
	// said is the answer where the control cluster need not be asked.
	said *metav1.Status
	slot *slot
	// Grant is the TaskGrant that Do has created or ended, nil if it has not.
	Grant *authz.Grant
}

// Prepare reads what the agent wants. The refusal, if there is one, is about
// quotas or the form of the answer; what the API server itself would say about
// the content is left to Do.
func (s *Server) Prepare(ask Ask) (*Call, *request.Refusal) {
	form, ok := formOf(ask.Accept)
	if !ok {
		return nil, &request.Refusal{Reason: authz.BadHeader, Cause: "Accept", Status: http.StatusNotAcceptable,
			Text: "these objects are served as application/json, also as Table and PartialObjectMetadata. Next: accept application/json"}
	}
	c := &Call{server: s, ask: ask, view: view{agent: ask.Agent, resource: ask.Request.Call.Resource, form: form}}
	c.query, _ = url.ParseQuery(ask.Request.Query()) // was written from parsed values
	c.view.rows = c.query.Get("includeObject")
	if ask.Request.Call.Version != v1alpha1.GroupVersion.Version {
		c.said = status(apierrors.NewGenericServerResponse(http.StatusNotFound, "", schema.GroupResource{}, "", "", 0, true))
		return c, nil
	}
	if ask.Request.Call.Verb != authz.Create {
		return c, nil
	}
	if c.body, c.said = create(&ask); c.said != nil {
		return c, nil
	}
	var refused *request.Refusal
	c.slot, refused = s.quota.take(ask.Agent, ask.Request.DryRun)
	return c, refused
}

// Close gives back what Prepare took.
func (c *Call) Close() { c.slot.close() }

// answerTimeout bounds calls that do not go on; the API server itself gives up
// after a minute.
const answerTimeout = 70 * time.Second

// Do makes the call. The body of the response holds only what the agent may see;
// it has to be closed. An error means that the control cluster did not answer,
// and that a mutation may have taken effect.
func (c *Call) Do(ctx context.Context) (*http.Response, error) {
	if c.said != nil {
		return say(c.said), nil
	}
	if c.ask.Request.Live {
		return c.watch(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	response, err := c.short(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	response.Body = &closing{response.Body, cancel}
	return response, nil
}

func (c *Call) short(ctx context.Context) (*http.Response, error) {
	switch c.ask.Request.Call.Verb {
	case authz.Create:
		return c.create(ctx)
	case authz.Get:
		return c.get(ctx)
	case authz.List:
		return c.list(ctx)
	case authz.Delete:
		return c.delete(ctx)
	}
	return nil, fmt.Errorf("the verb %s is not served", c.ask.Request.Call.Verb) // authz allows no other
}

func (c *Call) get(ctx context.Context) (*http.Response, error) {
	c.keep("resourceVersion")
	response, err := c.send(ctx, http.MethodGet, c.ask.Request.Call.Name, c.view.accept(), nil)
	if err != nil {
		return nil, err
	}
	return c.one(response)
}

func (c *Call) list(ctx context.Context) (*http.Response, error) {
	c.narrow()
	response, err := c.send(ctx, http.MethodGet, "", c.view.accept(), nil)
	if err != nil || response.StatusCode != http.StatusOK {
		return response, err
	}
	return answer(response, newListing(response.Body, &c.view)), nil
}

func (c *Call) watch(ctx context.Context) (*http.Response, error) {
	c.narrow()
	response, err := c.send(ctx, http.MethodGet, "", c.view.accept(), nil)
	if err != nil || response.StatusCode != http.StatusOK {
		return response, err
	}
	return answer(response, newWatching(response.Body, &c.view)), nil
}

// narrow adds the one selector that counts. Selectors are conjunctions, so the
// agent's own can only take more away.
func (c *Call) narrow() {
	own := fields.OneTermEqualSelector("spec.agent", c.ask.Agent).String()
	if asked := c.query.Get("fieldSelector"); asked != "" {
		own = asked + "," + own
	}
	c.query.Set("fieldSelector", own)
	c.keep("fieldSelector", "labelSelector", "limit", "continue", "resourceVersion", "resourceVersionMatch", "timeoutSeconds", "sendInitialEvents", "allowWatchBookmarks", "watch")
}

// keep leaves only the parameters named, and asks for whole objects in Tables,
// because they are judged.
func (c *Call) keep(names ...string) {
	kept := url.Values{}
	for _, name := range names {
		if c.query.Has(name) {
			kept.Set(name, c.query.Get(name))
		}
	}
	if c.view.form == table {
		kept.Set("includeObject", "Object")
	}
	c.query = kept
}

// send makes one request to the control cluster.
func (c *Call) send(ctx context.Context, method, name, accept string, body []byte) (*http.Response, error) {
	target := *c.server.base
	target.Path += "/apis/" + v1alpha1.GroupVersion.String() + "/" + c.view.resource
	if name != "" {
		target.Path += "/" + name
	}
	target.RawQuery = c.query.Encode()
	outgoing, err := http.NewRequestWithContext(ctx, method, target.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	outgoing.Header.Set("Accept", accept)
	outgoing.Header.Set("Audit-Id", c.ask.AuditID)
	if body != nil {
		outgoing.Header.Set("Content-Type", "application/json")
	}
	return c.server.client.Do(outgoing)
}

// maxObject is more than the API server stores in one object.
const maxObject = 8 << 20

// one passes on the answer about one object, or says that there is none.
func (c *Call) one(response *http.Response) (*http.Response, error) {
	switch {
	case response.StatusCode == http.StatusNotFound:
		response.Body.Close()
		return say(c.notFound()), nil
	case response.StatusCode != http.StatusOK && response.StatusCode != http.StatusCreated:
		return response, nil
	}
	defer response.Body.Close()
	object, err := readObject(response.Body)
	if err != nil {
		return nil, err
	}
	if object, ok := c.view.answer(object); ok {
		encoded, err := encode(object)
		return answer(response, bodyOf(encoded)), err
	}
	return say(c.notFound()), nil
}

func (c *Call) notFound() *metav1.Status {
	return status(apierrors.NewNotFound(c.resource(), c.ask.Request.Call.Name))
}

func (c *Call) resource() schema.GroupResource {
	return v1alpha1.GroupVersion.WithResource(c.view.resource).GroupResource()
}

func bodyOf(content []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(content)) }

func readObject(from io.Reader) (map[string]any, error) {
	object, decoder := map[string]any{}, newDecoder(io.LimitReader(from, maxObject))
	if err := decoder.Decode(&object); err != nil {
		return nil, fmt.Errorf("reading an object of the control cluster: %w", err)
	}
	return object, nil
}

// answer is a response with a body of ours: its length and encoding are others.
func answer(from *http.Response, body io.ReadCloser) *http.Response {
	header := http.Header{}
	for _, name := range []string{"Content-Type", "Cache-Control", "Warning", "Date"} {
		if values := from.Header[name]; len(values) > 0 {
			header[name] = values
		}
	}
	return &http.Response{StatusCode: from.StatusCode, Header: header, Body: body}
}

// say answers without the control cluster.
func say(status *metav1.Status) *http.Response {
	status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	encoded, err := json.Marshal(status)
	if err != nil { // plain strings always encode
		encoded = nil
	}
	return &http.Response{
		StatusCode: int(status.Code), Body: bodyOf(encoded),
		Header: http.Header{"Content-Type": {"application/json"}, "Cache-Control": {"no-cache, private"}},
	}
}

func status(err error) *metav1.Status {
	var said apierrors.APIStatus
	if errors.As(err, &said) {
		status := said.Status()
		return &status
	}
	internal := apierrors.NewInternalError(err).Status()
	return &internal
}

// closing ends the call's deadline with its body.
type closing struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (c *closing) Close() error {
	defer c.cancel()
	return c.ReadCloser.Close()
}
