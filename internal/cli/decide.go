package cli

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	authentication "k8s.io/client-go/kubernetes/typed/authentication/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/internal/inert"
)

// verdict is what approve and deny differ in.
type verdict struct {
	use, short, long, example, word, question string
}

func approving() verdict {
	return verdict{
		use: "approve NAME", short: "Say yes to exactly one call, or to a grant", word: v1alpha1.VerdictApprove,
		long: `Approve says yes, in your name, to one Approval or TaskGrant: to exactly the call or
the rules you were shown, and to nothing else. It shows them and asks first; a
script says --yes, and with --digest that it means what taskgate show has shown.

What is too long to be shown at once has to be read with --full, or be named by
--digest.`,
		example: `  taskgate approve ap-1f2e3d4c5b-0 --reason "seen in INC-4711"
  taskgate approve taskgrant/inc-4711 --group sre
  taskgate approve ap-1f2e3d4c5b-0 --yes --digest 1f2e...`,
		question: "Approve? Type yes: ",
	}
}

func denying() verdict {
	return verdict{
		use: "deny NAME", short: "Say no, for good", word: v1alpha1.VerdictDeny,
		long:     `Deny says no, in your name, to one Approval or TaskGrant. One no is enough and is final.`,
		example:  `  taskgate deny ap-1f2e3d4c5b-0 --reason "use the runbook"`,
		question: "Deny? Type yes: ",
	}
}

type decideOptions struct {
	cluster
	verdict
	reason, digest string
	groups         []string
	yes, full      bool
	terminal       func(any) bool
}

func decideCommand(v verdict, terminal func(any) bool) *cobra.Command {
	o := decideOptions{verdict: v, terminal: terminal}
	cmd := &cobra.Command{
		Use: v.use, Short: v.short, Example: v.example, Args: cobra.ExactArgs(1),
		Long: v.long + `

NAME is approval/NAME, taskgrant/NAME, or the name alone. Exit code 0: decided.
1: you may not decide this, or it is decided already. 2: it could not be done.`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args[0]) },
	}
	o.cluster.flags(cmd)
	flags := cmd.Flags()
	flags.StringVar(&o.reason, "reason", "", "why, in your own words; everybody who may see the Decision reads it")
	flags.StringArrayVar(&o.groups, "group", nil, "decide as a member of this `group` only; may be repeated")
	flags.StringVar(&o.digest, "digest", "", "decide only if this is its `digest`, as taskgate show prints it")
	flags.BoolVar(&o.yes, "yes", false, "do not ask; needed where nobody sits at a terminal")
	flags.BoolVar(&o.full, "full", false, "show whole texts, however long, before asking")
	return cmd
}

func (o *decideOptions) run(cmd *cobra.Command, name string) error {
	client, err := o.client()
	if err != nil {
		return couldNot("%w", err)
	}
	person, err := whoAmI(cmd.Context(), client)
	if err != nil {
		return err
	}
	t, err := find(cmd.Context(), client, name)
	if err != nil {
		return err
	}
	if err := o.possible(t, person, time.Now()); err != nil {
		return err
	}
	groups, err := o.as(t, person)
	if err != nil {
		return err
	}
	if err := o.confirm(cmd, t); err != nil {
		return err
	}
	if err := o.decide(cmd.Context(), client, t, person, groups); err != nil {
		return err
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), o.follows(t))
	return err
}

// whoAmI asks the API server who the person is. Without an answer nothing is
// decided: a Decision has to carry the name the API server knows.
func whoAmI(ctx context.Context, c *objects) (authenticationv1.UserInfo, error) {
	client, err := authentication.NewForConfig(c.config)
	if err != nil {
		return authenticationv1.UserInfo{}, couldNot("%w", err)
	}
	review, err := client.SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return authenticationv1.UserInfo{}, explain(err, "asking the cluster who you are", roleApprover)
	}
	if review.Status.UserInfo.Username == "" {
		return authenticationv1.UserInfo{}, couldNot("the cluster does not say who you are")
	}
	return review.Status.UserInfo, nil
}

// possible says early what the broker would say late. It takes nothing away from
// what the broker checks.
func (o *decideOptions) possible(t *target, person authenticationv1.UserInfo, now time.Time) error {
	s := t.standing(now)
	switch {
	case o.digest != "" && o.digest != t.digest:
		return no("%s has the digest %s, not the one you gave: it is not what you have seen", t.path(), t.digest)
	case !s.open && s.word == "Waiting":
		return no("%s is not for people to decide now: %s", t.path(), s.why)
	case !s.open:
		return no("%s is settled (%s): %s", t.path(), s.word, s.why)
	}
	for _, d := range t.decisions {
		if !t.asks(d) {
			continue
		}
		if d.Spec.Verdict == v1alpha1.VerdictDeny {
			return no("%s was denied by %s at %s: %s", t.path(), d.Spec.By, clock(d.CreationTimestamp.Time), cmp.Or(d.Spec.Reason, "no reason"))
		}
		if d.Spec.By == person.Username && d.Spec.Verdict == o.word {
			return no("you have approved %s already; it needs %s", t.path(), t.needs())
		}
	}
	if o.word == v1alpha1.VerdictApprove && t.askedBy(person.Username) {
		return no("you (%s) asked for %s: somebody else has to approve it", person.Username, t.path())
	}
	return nil
}

// as chooses the groups the Decision rests on: the person's among those that are
// asked. Where it is not known who is asked, it is all of the person's.
func (o *decideOptions) as(t *target, person authenticationv1.UserInfo) ([]string, error) {
	for _, group := range o.groups {
		if !slices.Contains(person.Groups, group) {
			return nil, no("you (%s) are not in the group %s", person.Username, group)
		}
	}
	mine := person.Groups
	if len(o.groups) > 0 {
		mine = o.groups
	}
	switch {
	case len(t.groups) == 0 && t.approvers == 0:
		return mine[:min(len(mine), mostGroups)], nil
	case len(t.groups) == 0:
		return o.groups, nil
	}
	chosen := common(mine, t.groups)
	if len(chosen) == 0 {
		return nil, no("you (%s) are in none of the groups that are asked, %s; your groups are %s", person.Username,
			strings.Join(t.groups, ", "), cmp.Or(strings.Join(mine, ", "), "none"))
	}
	return chosen, nil
}

// mostGroups is how many a Decision can name.
const mostGroups = 64

// confirm shows what is decided and asks. Nobody says yes unseen to what was not
// shown whole: that takes its digest.
func (o *decideOptions) confirm(cmd *cobra.Command, t *target) error {
	var hidden strings.Builder
	v := newView(&hidden, o.terminal, o.full)
	if !o.yes {
		v = newView(cmd.OutOrStdout(), o.terminal, o.full)
		if !o.terminal(cmd.InOrStdin()) {
			return couldNot("nobody sits at a terminal to be asked: give --yes")
		}
	}
	v.target(t, time.Now())
	if v.err != nil {
		return couldNot("showing %s: %w", t.path(), v.err)
	}
	if o.word == v1alpha1.VerdictApprove && o.digest == "" {
		if err := o.seen(t, v); err != nil {
			return err
		}
	}
	if o.yes {
		return nil
	}
	fmt.Fprintf(cmd.OutOrStdout(), "\n%s", o.question)
	answer, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if strings.ToLower(strings.TrimSpace(answer)) == "yes" {
		return nil
	}
	if err != nil {
		return couldNot("nothing was decided: %w", err)
	}
	return no("nothing was decided")
}

func (o *decideOptions) seen(t *target, v *view) error {
	size := 0
	if t.approval != nil {
		size = len(t.approval.Spec.Diff)
		if size > 0 && t.approval.Spec.DiffNote != "" {
			return no("the diff of %s is not whole (%s): look at the change elsewhere, then give --digest %s", inert.Line(t.path()), t.approval.Spec.DiffNote, t.digest)
		}
	}
	if v.cut || o.yes && size > mostText {
		return no("%s is too long to be shown at once: read it with taskgate show %s --full, then give --digest", t.path(), t.path())
	}
	return nil
}

func (o *decideOptions) decide(ctx context.Context, c *objects, t *target, person authenticationv1.UserInfo, groups []string) error {
	decision := &v1alpha1.Decision{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Decision"},
		ObjectMeta: metav1.ObjectMeta{GenerateName: "dec-"},
		Spec: v1alpha1.DecisionSpec{
			Target:  v1alpha1.DecisionTarget{Kind: t.kind, Name: t.name, UID: t.uid, Digest: t.digest},
			Verdict: o.word, By: person.Username, Groups: groups, Reason: o.reason,
		},
	}
	err := c.rest.Post().Resource(decisions).Body(decision).Do(ctx).Error()
	if err != nil && strings.Contains(err.Error(), "ValidatingAdmissionPolicy") {
		return no("the cluster does not take your Decision: %w", err)
	}
	if apierrors.IsInvalid(err) {
		return couldNot("the cluster does not understand the Decision: %w", err)
	}
	return explain(err, "creating the Decision (create decisions.taskgate.dev)", roleApprover)
}

// follows says what the Decision does.
func (o *decideOptions) follows(t *target) string {
	name := inert.Line(t.path())
	if o.word == v1alpha1.VerdictDeny {
		return fmt.Sprintf("Denied %s. That is final.", name)
	}
	missing := t.approvers - t.yeses() - 1
	switch {
	case t.approvers == 0:
		return fmt.Sprintf("Approved %s.", name)
	case missing == 1:
		return fmt.Sprintf("Approved %s. One more person has to agree.", name)
	case missing > 1:
		return fmt.Sprintf("Approved %s. %d more people have to agree.", name, missing)
	case t.approval != nil:
		return fmt.Sprintf("Approved %s. The agent may make exactly this call once, within %s.", name, t.approval.Spec.UseWithin.Duration)
	}
	return fmt.Sprintf("Approved %s. It is active for %s from now.", name, t.grant.Spec.TTL.Duration)
}
