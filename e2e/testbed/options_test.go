package testbed

import (
	"os/exec"
	"strings"
	"testing"
)

func TestOptionsDefaults(t *testing.T) {
	options, err := Options{Directory: "somewhere"}.complete()
	if err != nil {
		t.Fatal(err)
	}
	if options.SPIFFE != Dev || options.S3 != VersityGW || options.Node != Kwok || options.Brokers != 1 {
		t.Errorf("the defaults are %+v", options)
	}
	if !strings.HasPrefix(options.Directory, "/") || !strings.HasSuffix(options.Directory, "/somewhere") {
		t.Errorf("the directory is %s", options.Directory)
	}
	if options, err = (Options{Directory: "x", Kubeconfig: "y"}).complete(); err != nil || options.Node != NoNode {
		t.Errorf("an existing cluster gets the node %q, %v", options.Node, err)
	}
}

func TestOptionsMistakes(t *testing.T) {
	for wanted, options := range map[string]Options{
		"needs a directory":       {},
		"SPIFFE=x is not known":   {Directory: "d", SPIFFE: "x"},
		"can be kwok or real or":  {Directory: "d", Node: "moon"},
		"at least 1 broker":       {Directory: "d", Brokers: -1},
		"needs the controllers":   {Directory: "d", Node: RealNode, WithoutControllers: true},
		"S3=x is not known; it c": {Directory: "d", S3: "x"},
	} {
		if _, err := options.complete(); err == nil || !strings.Contains(err.Error(), wanted) {
			t.Errorf("%+v was answered with %v, not %q", options, err, wanted)
		}
	}
}

// TestShell has a shell read values that are hard to quote.
func TestShell(t *testing.T) {
	hard := `it's "$HOME" \ $(reboot) ` + "`x`\n&"
	file := Environment{AuditLog: hard, BrokerPID: 7}.Shell()
	output, err := exec.CommandContext(t.Context(), "sh", "-euc", file+`printf %s "$TASKGATE_AUDIT_LOG$TASKGATE_BROKER_PID"`).CombinedOutput()
	if err != nil || string(output) != hard+"7" {
		t.Errorf("a shell read %q, %v", output, err)
	}
}

// TestVariables guards the contract with other checks.
func TestVariables(t *testing.T) {
	const names = `ADMIN_KUBECONFIG ALPHA_KUBECONFIG ALPHA_URL ALPHA_TOKEN ALPHA_CA BETA_KUBECONFIG BETA_URL BETA_TOKEN BETA_CA
		BROKER_ADDR BROKER_METRICS BROKER_PID BROKER_SPOOL TRUST_BUNDLE AUDIT_LOG S3_ENDPOINT S3_BUCKET S3_ADMIN_KEY S3_ADMIN_SECRET
		S3_BROKER_KEY S3_BROKER_SECRET S3_AUDITOR_KEY S3_AUDITOR_SECRET BIN`
	var wanted strings.Builder
	for name := range strings.FieldsSeq(names) {
		wanted.WriteString("TASKGATE_" + name + "=\n")
	}
	if lines := strings.Join(Environment{}.Lines(), "\n") + "\n"; lines != wanted.String() {
		t.Errorf("the variables are\n%s", lines)
	}
}

func TestReadEvents(t *testing.T) {
	events, err := readEvents(strings.NewReader("{\"auditID\":\"a\"}\n{\"auditID\":\"b\"}\n{\"auditI"))
	if err != nil || len(events) != 2 || events[1].AuditID != "b" {
		t.Errorf("two events and a torn line were read as %v, %v", events, err)
	}
	if _, err := readEvents(strings.NewReader("nonsense\n")); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("nonsense was read: %v", err)
	}
}
