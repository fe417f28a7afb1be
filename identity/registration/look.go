package registration

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrNoIdentity says that the Workload API knows the caller and gives it nothing.
var ErrNoIdentity = errors.New("the Workload API gives this process no identity")

// Seen is one X509-SVID the Workload API hands out to this process. Times are UTC.
type Seen struct {
	ID     string    `json:"id"`
	Hint   string    `json:"hint"`
	From   time.Time `json:"from"`
	Until  time.Time `json:"until"`
	Picked bool      `json:"picked"` // a sidecar started with the same hint uses this one
}

// Look asks a Workload API for the X509-SVIDs of this process. An empty address is
// $SPIFFE_ENDPOINT_SOCKET; hint is as in identity.Config. It returns ErrNoIdentity
// if there are none, and another error if it cannot tell. Every SVID is verified
// against the bundle that came with it.
func Look(ctx context.Context, address, hint string) ([]Seen, error) {
	var options []workloadapi.ClientOption
	if address != "" {
		options = append(options, workloadapi.WithAddr(address))
	}
	client, err := workloadapi.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("opening the Workload API: %w; give its address, such as unix:///run/spire/agent.sock", err)
	}
	defer client.Close()
	update, err := client.FetchX509Context(ctx)
	switch {
	case status.Code(err) == codes.PermissionDenied:
		return nil, fmt.Errorf("%w: %w", ErrNoIdentity, err)
	case err != nil:
		return nil, fmt.Errorf("asking the Workload API: %w", err)
	}
	var seen []Seen
	picked := false
	for _, svid := range update.SVIDs {
		if _, _, err := x509svid.Verify(svid.Certificates, update.Bundles); err != nil {
			return nil, fmt.Errorf("the Workload API sent an SVID that its own trust bundle does not bear out: %w", err)
		}
		leaf := svid.Certificates[0]
		s := Seen{ID: svid.ID.String(), Hint: svid.Hint, From: leaf.NotBefore.UTC(), Until: leaf.NotAfter.UTC()}
		if !picked && (hint == "" || svid.Hint == hint) {
			s.Picked, picked = true, true
		}
		seen = append(seen, s)
	}
	if len(seen) == 0 {
		return nil, ErrNoIdentity
	}
	return seen, nil
}

// Judge says what is wrong with what a process sees: nothing is picked, the ID is
// not the expected one (the zero ID expects none in particular), it runs out, or
// which SVID is picked hangs on the order in which they come.
func Judge(seen []Seen, expected spiffeid.ID, hint string, now time.Time) []string {
	var problems []string
	picked, same := Seen{}, 0
	for _, s := range seen {
		if s.Picked {
			picked = s
		}
		if hint == "" || s.Hint == hint {
			same++
		}
	}
	switch {
	case !picked.Picked:
		return []string{fmt.Sprintf("none of the SVIDs has the hint %q: the sidecar's entry is missing, or was made without the hint", hint)}
	case same > 1:
		problems = append(problems, fmt.Sprintf("%d SVIDs could be picked: which one is a matter of order. Use --hint %s, or delete the entry that should not be", same, Hint))
	}
	if !expected.IsZero() && picked.ID != expected.String() {
		problems = append(problems, fmt.Sprintf("the identity is %s, not %s", picked.ID, expected))
	}
	if !now.Before(picked.Until) {
		problems = append(problems, "the SVID has run out: the SPIRE agent does not renew it")
	}
	return problems
}
