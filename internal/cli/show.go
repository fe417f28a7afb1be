package cli

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/internal/inert"
)

type showOptions struct {
	cluster
	full     bool
	output   string
	terminal func(any) bool
}

func showCommand(terminal func(any) bool) *cobra.Command {
	o := showOptions{terminal: terminal}
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "See what exactly is asked",
		Long: `Show tells everything there is to know before saying yes or no to an Approval or a
TaskGrant. NAME is approval/NAME, taskgrant/NAME, or the name alone.

What comes from the agent cannot do anything to your terminal: what is not a plain
visible character is written as an escape such as \x1b or \u202e.`,
		Example: `  taskgate show ap-1f2e3d4c5b-0
  taskgate show taskgrant/inc-4711
  taskgate show ap-1f2e3d4c5b-0 --full | less`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args[0]) },
	}
	o.cluster.flags(cmd)
	cmd.Flags().BoolVar(&o.full, "full", false, "whole texts, however long")
	cmd.Flags().StringVarP(&o.output, "output", "o", "text", "text or json")
	return cmd
}

func (o *showOptions) run(cmd *cobra.Command, name string) error {
	if o.output != "text" && o.output != "json" {
		return couldNot("--output is text or json, not %q", o.output)
	}
	client, err := o.client()
	if err != nil {
		return couldNot("%w", err)
	}
	t, err := find(cmd.Context(), client, name)
	if err != nil {
		return err
	}
	now := time.Now()
	if o.output == "json" {
		return printJSON(cmd.OutOrStdout(), shown{item(t, now), t.approval, t.grant, t.decisions, inert.Suspicious(t.words())})
	}
	v := newView(cmd.OutOrStdout(), o.terminal, o.full)
	v.target(t, now)
	v.nextStep(t, now)
	return v.err
}

// shown is what show tells programs.
type shown struct {
	pendingItem
	Approval   *v1alpha1.Approval  `json:"approval,omitempty"`
	TaskGrant  *v1alpha1.TaskGrant `json:"taskGrant,omitempty"`
	Decisions  []v1alpha1.Decision `json:"decisions,omitempty"`
	Suspicious []string            `json:"suspicious,omitempty"`
}

// mostText is how much of one text is shown unless the whole is asked for.
const mostText = 100 << 10

// view writes what is asked so that a person can judge it. Everything in it goes
// through package inert; colours are ours, and only on a terminal.
type view struct {
	printer
	colour bool
	most   int  // bytes of one text
	cut    bool // something was not shown whole
}

func newView(out io.Writer, terminal func(any) bool, full bool) *view {
	v := &view{printer: printer{out: out}, colour: terminal(out) && os.Getenv("NO_COLOR") == "", most: mostText}
	if full {
		v.most = int(^uint(0) >> 1)
	}
	return v
}

// field writes a label and what belongs to it, a line each.
func (v *view) field(label string, lines ...string) {
	for i, line := range lines {
		if i > 0 {
			label = ""
		}
		v.whole(fmt.Sprintf("%-10s ", label), line)
	}
}

// whole writes a text of one line.
func (v *view) whole(before, text string) {
	shown, _ := inert.Cut(text, v.most)
	v.line("%s%s", before, inert.Line(shown))
	v.note(len(shown), len(text))
}

// block writes a text of many lines behind a bar, so that no line of it can be
// taken for one of ours.
func (v *view) block(text string, paint func(line string) string) {
	shown, _ := inert.Cut(text, v.most)
	for _, line := range strings.Split(strings.TrimSuffix(inert.Text(shown), "\n"), "\n") {
		v.line("%s%s", bar, paint(line))
	}
	v.note(len(shown), len(text))
}

const bar = "  │ "

// list writes texts of one line each, together no more than one text may be.
func (v *view) list(texts []string) {
	shown := 0
	for _, text := range texts {
		part, whole := inert.Cut(text, v.most-shown)
		shown += len(part)
		v.line("%s%s", bar, inert.Line(part))
		if !whole {
			break
		}
	}
	v.note(shown, len(strings.Join(texts, "")))
}

// note says that a text was cut.
func (v *view) note(shown, size int) {
	if shown < size {
		v.cut = true
		v.line("  cut: %d of %d bytes are shown; see all with --full", shown, size)
	}
}

func unpainted(line string) string { return line }

func (v *view) diffLine(line string) string {
	if !v.colour {
		return line
	}
	switch {
	case strings.HasPrefix(line, "+"):
		return "\x1b[32m" + line + "\x1b[0m"
	case strings.HasPrefix(line, "-"):
		return "\x1b[31m" + line + "\x1b[0m"
	}
	return line
}

// target writes all but what to do next.
func (v *view) target(t *target, now time.Time) {
	if t.approval != nil {
		v.approval(t)
	} else {
		v.grant(t)
	}
	for _, suspicious := range inert.Suspicious(t.words()) {
		v.line("%-10s %s", "Careful", suspicious)
	}
	v.line("")
	v.asks(t)
	v.line("")
	v.state(t, now)
	v.field("Digest", t.digest)
}

func (v *view) approval(t *target) {
	spec := &t.approval.Spec
	v.whole("", callWords(&spec.Call))
	if spec.Summary != "" {
		v.whole("", spec.Summary)
	}
	v.line("")
	v.field("Risk", t.gateWords()...)
	v.call(&spec.Call)
	v.line("")
	switch {
	case spec.Diff != "":
		v.field("Change", fmt.Sprintf("what a dry run of this very request changes (%d bytes)", len(spec.Diff)))
		v.block(spec.Diff, v.diffLine)
	case spec.DiffNote == "":
		v.field("Change", "there is no diff, and it is not said why")
	}
	if spec.DiffNote != "" {
		v.field("Note", spec.DiffNote)
	}
}

// call writes what a dry run does not show.
func (v *view) call(c *v1alpha1.ApprovalCall) {
	if len(c.Command) > 0 {
		v.field("Command", fmt.Sprintf("%s, %d bytes, one a line", count(len(c.Command), "argument"), len(strings.Join(c.Command, ""))))
		v.list(c.Command)
	}
	if c.Query != "" {
		v.field("Query", c.Query)
	}
	if c.BodyBytes > 0 {
		v.field("Body", strings.TrimSpace(fmt.Sprintf("%d bytes, %s %s", c.BodyBytes, cmp.Or(c.MediaType, "of no type"), hash(c.BodySHA256))))
	}
	if c.UID != "" {
		v.field("Object", "UID "+c.UID)
	}
}

func hash(sum string) string {
	if sum == "" {
		return ""
	}
	return "SHA-256 " + sum
}

func (v *view) grant(t *target) {
	spec := &t.grant.Spec
	v.whole("", fmt.Sprintf("Let %s do this for %s:", spec.Agent, spec.TTL.Duration))
	var rules []string
	for i := range spec.Rules {
		rules = append(rules, ruleWords(&spec.Rules[i]))
	}
	v.list(rules)
	v.line("")
	v.field("Risk", "everything above may be done without asking again, but for calls that stop at a gate")
}

func (v *view) asks(t *target) {
	v.field("Asked by", t.agent, "task "+t.task)
	reason := ""
	switch {
	case t.grant == nil:
		v.field("", "grant "+t.approval.Spec.Grant+" (gone, or hidden from you) under the AgentPolicy "+t.policyName)
	case t.approval != nil:
		v.field("", "grant "+t.grant.Name+" under the AgentPolicy "+t.policyName)
		reason = t.grant.Spec.Reason
	default:
		v.field("", "under the AgentPolicy "+t.policyName)
		reason = t.grant.Spec.Reason
	}
	if t.grant != nil && t.grant.Spec.RequestedBy != "" {
		v.field("", "the grant was asked for by "+t.grant.Spec.RequestedBy)
	}
	switch {
	case t.grant == nil:
		v.field("Says", "its reason is gone, or hidden from you")
		return
	case reason == "":
		v.field("Says", "nothing about why")
		return
	}
	v.field("Says", "in its own words, which nobody has checked:")
	v.block(reason, unpainted)
}

func (v *view) state(t *target, now time.Time) {
	s := t.standing(now)
	left := s.word + ": " + s.why
	if at := t.expires(); s.open && !at.IsZero() {
		left += fmt.Sprintf("; %s left, until %s", duration.HumanDuration(at.Sub(now)), clock(at))
	}
	v.field("State", left)
	v.field("Needs", t.needs())
	var said []string
	for _, d := range t.decisions {
		said = append(said, fmt.Sprintf("%s by %s (%s) at %s: %s", d.Spec.Verdict, d.Spec.By, cmp.Or(strings.Join(d.Spec.Groups, ", "), "no group"),
			clock(d.CreationTimestamp.Time), cmp.Or(d.Spec.Reason, "no reason")))
	}
	if len(said) == 0 {
		said = []string{"nobody yet"}
	}
	v.field("Decided", said...)
	v.field("A yes", t.meaning())
}

// nextStep names the commands that decide.
func (v *view) nextStep(t *target, now time.Time) {
	if !t.standing(now).open {
		return
	}
	v.line("")
	v.whole("  ", fmt.Sprintf(`taskgate approve %s --digest %s --reason "..."`, t.path(), t.digest))
	v.whole("  ", fmt.Sprintf(`taskgate deny %s --reason "..."`, t.path()))
}
