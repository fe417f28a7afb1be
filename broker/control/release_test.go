package control

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
)

// TestReleased: what a grant is after its agent gave it back, and stays.
func TestReleased(t *testing.T) {
	for _, row := range []struct {
		name  string
		grant *v1alpha1.TaskGrant
		want  string
	}{
		{"active", taskGrant(activeSince(noon.Add(-time.Minute))), "Approved=True Active=False Ended=True Released Released"},
		{"never judged", taskGrant(), "Approved=False Active=False Ended=True Released Released"},
		{"revoked a moment ago", taskGrant(activeSince(noon.Add(-time.Minute)), func(g *v1alpha1.TaskGrant) { g.Spec.Revoked = true }), "Approved=True Active=False Ended=True Revoked Revoked"},
		{"over already", taskGrant(activeSince(noon.Add(-2*time.Hour)), func(g *v1alpha1.TaskGrant) {
			g.Status = (&evaluation{grant: g, policy: policy(), now: noon}).status()
		}), "Approved=True Active=False Ended=True Expired Expired"},
	} {
		row.grant.Status = released(row.grant, noon)
		if got := summary(row.grant.Status); got != row.want || !meta.IsStatusConditionTrue(row.grant.Status.Conditions, v1alpha1.GrantReleased) {
			t.Errorf("%s: %s", row.name, got)
		}
		later := (&evaluation{grant: row.grant, policy: policy(), now: noon.Add(time.Hour)}).status()
		if !same(&row.grant.Status, &later) {
			t.Errorf("%s: does not stay: %s", row.name, summary(later))
		}
	}
}

func TestNearlySpent(t *testing.T) {
	ten, none := int64(10), int64(0)
	m := new(Meter)
	m.grant.mutations, m.grant.streams = share{left: 2, reserved: 10}, share{reserved: 2}
	if got := m.NearlySpent(&authz.Policy{Budget: authz.Budget{Mutations: &ten, Streams: &ten, Requests: &ten}}); got != nil {
		t.Errorf("eight of ten: %v", got)
	}
	m.grant.mutations.left = 1
	m.grant.requests.Store(9)
	m.grant.bytesOut.Store(1 << 40)
	if got := m.NearlySpent(&authz.Policy{Budget: authz.Budget{Mutations: &ten, Streams: &none, Requests: &ten}}); len(got) != 3 {
		t.Errorf("nine of ten, and two of none: %v", got)
	}
	if got := m.NearlySpent(new(authz.Policy)); got != nil {
		t.Errorf("without limits: %v", got)
	}
}
