package broker

import (
	"context"
	"net/http"

	"github.com/taskgate/taskgate/broker/tasks"
)

// own serves a call about the agent's own grants and approvals from the control
// cluster. It is decided and recorded like any other, and goes on no longer than
// what allowed it; but it is made under the broker's own account, so it never
// gets an admission that could be forwarded.
func (x *exchange) own() *refusal {
	if r := x.decide(); r != nil {
		return r
	}
	ask := tasks.Ask{Agent: x.conn.agent, Request: x.request, Accept: joinNames(x.r.Header["Accept"]), AuditID: x.auditID}
	for _, policy := range x.question.Set.Policies() {
		ask.Policies = append(ask.Policies, policy.Name)
	}
	call, refused := x.b.tasks.Prepare(ask)
	if refused != nil {
		return x.denied(notUnderstood(refused))
	}
	defer call.Close()
	a := &admission{request: x.request, auditID: x.auditID, verbatim: true} // never a Secret
	if r := x.intend(a); r != nil {
		return r
	}
	x.carry(a, func(ctx context.Context) (*http.Response, error) {
		response, err := call.Do(ctx)
		if call.Grant != nil {
			x.decision.Grant = call.Grant // the outcome names the grant that was made or given back
		}
		return response, err
	})
	return nil
}
