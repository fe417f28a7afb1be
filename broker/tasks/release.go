package tasks

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// delete gives a grant back. It answers as the API server answers a deletion, and
// finds nothing to delete in a grant that was given back before.
func (c *Call) delete(ctx context.Context) (*http.Response, error) {
	c.keep()
	name := c.ask.Request.Call.Name
	response, err := c.send(ctx, http.MethodGet, name, "application/json", nil)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK && response.StatusCode != http.StatusNotFound {
		return response, nil
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusNotFound {
		return say(c.notFound()), nil
	}
	object, err := readObject(response.Body)
	if err != nil {
		return nil, err
	}
	if !c.view.mayShow(object) || released(object) {
		return say(c.notFound()), nil
	}
	return c.giveBack(ctx, object)
}

func (c *Call) giveBack(ctx context.Context, object map[string]any) (*http.Response, error) {
	grant := aboutGrant(object)
	meta, _ := object["metadata"].(map[string]any)
	must := preconditions(c.ask.Request.Object)
	if differs := must.differs(c, meta); differs != nil {
		return say(differs), nil
	}
	if !c.ask.Request.DryRun {
		if err := c.server.release(ctx, grant.Name, grant.UID, must.ResourceVersion); err != nil {
			if said := apierrors.APIStatus(nil); errors.As(err, &said) {
				return say(status(err)), nil
			}
			return nil, err
		}
		c.Grant = grant
	}
	return say(&metav1.Status{
		Status: metav1.StatusSuccess, Code: http.StatusOK,
		Details: &metav1.StatusDetails{Name: grant.Name, Group: c.resource().Group, Kind: c.resource().Resource, UID: types.UID(grant.UID)},
	}), nil
}

// mustBe is what a deletion may insist on; empty means anything.
type mustBe struct{ UID, ResourceVersion string }

func preconditions(body any) mustBe {
	options, _ := body.(map[string]any)
	given, _ := options["preconditions"].(map[string]any)
	var must mustBe
	must.UID, _ = given["uid"].(string)
	must.ResourceVersion, _ = given["resourceVersion"].(string)
	return must
}

// differs is what the API server says about an object that is another one.
func (m mustBe) differs(c *Call, meta map[string]any) *metav1.Status {
	for _, condition := range []struct{ what, want, field string }{{"UID", m.UID, "uid"}, {"ResourceVersion", m.ResourceVersion, "resourceVersion"}} {
		if is, _ := meta[condition.field].(string); condition.want != "" && condition.want != is {
			return status(apierrors.NewConflict(c.resource(), c.ask.Request.Call.Name, fmt.Errorf(
				"the %s in the precondition (%s) does not match the %s in record (%s). The object might have been deleted and then recreated", condition.what, condition.want, condition.what, is)))
		}
	}
	return nil
}
