package demo

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// role is who types a command.
type role string

const (
	alpha      role = "alpha"    // the agent with the task
	beta       role = "beta"     // another agent
	operator   role = "operator" // gives and ends tasks
	alice      role = "alice"    // one of the group sre; says yes or no
	auditor    role = "auditor"  // can read the bucket, and nothing else
	broker     role = "broker"   // somebody who stole the broker's S3 key
	storeAdmin role = "storeadmin"
)

// brokerID is whose signatures count in the record of a testbed.
const brokerID = "spiffe://" + testbed.TrustDomain + "/ns/taskgate-system/sa/taskgate-broker"

//go:embed example/*.yaml
var example embed.FS

// cast is everybody who takes part, and the folder they work in.
type cast struct {
	folder       string
	path         string            // where the programs of the demo are
	environments map[role][]string // KEY=value; nobody has more than that
}

// newCast makes the folder demo in a testbed's directory: the files of example,
// and the program bucket.
func newCast(bed *testbed.Testbed) (*cast, error) {
	c := &cast{folder: filepath.Join(bed.Directory(), "demo"), environments: map[role][]string{}}
	if err := os.MkdirAll(filepath.Join(c.folder, "bin"), 0o755); err != nil {
		return nil, fmt.Errorf("making the demo's folder: %w", err)
	}
	environment := bed.Environment()
	c.path = filepath.Join(c.folder, "bin") + ":" + environment.Programs
	path := "PATH=" + c.path + ":" + os.Getenv("PATH")
	if err := writePerson(environment.AdminKubeconfig, filepath.Join(c.folder, "alice.kubeconfig"), "alice", "sre"); err != nil {
		return nil, err
	}
	c.environments[alice] = []string{path, "KUBECONFIG=" + filepath.Join(c.folder, "alice.kubeconfig")}
	for who, has := range belongings(environment) {
		c.environments[who] = append([]string{path}, has...)
	}
	if err := errors.Join(c.writeExample(), copyProgram(filepath.Join(c.folder, "bin", BucketName)), c.writeProfiles()); err != nil {
		return nil, err
	}
	return c, nil
}

// belongings is what each role has. An agent has its kubeconfig.
func belongings(e testbed.Environment) map[role][]string {
	store := func(user testbed.Credentials) []string {
		return []string{
			"TASKGATE_S3_ENDPOINT=" + e.Store.Endpoint, "TASKGATE_S3_BUCKET=" + e.Store.Bucket, "AWS_REGION=" + e.Store.Region,
			"AWS_ACCESS_KEY_ID=" + user.Key, "AWS_SECRET_ACCESS_KEY=" + user.Secret,
		}
	}
	return map[role][]string{
		alpha:      {"KUBECONFIG=" + e.Alpha.Kubeconfig},
		beta:       {"KUBECONFIG=" + e.Beta.Kubeconfig},
		operator:   {"KUBECONFIG=" + e.AdminKubeconfig, "TASKGATE_AUDIT_LOG=" + e.AuditLog},
		auditor:    append(store(e.Store.Auditor), "TASKGATE_TRUST_BUNDLE="+e.TrustBundle, "TASKGATE_BROKER_ID="+brokerID),
		broker:     store(e.Store.Broker),
		storeAdmin: store(e.Store.Admin),
	}
}

// writePerson writes the kubeconfig of a person. A testbed has no identity
// provider, so the administrator's credential stands for what it would vouch for.
func writePerson(from, to, name string, groups ...string) error {
	config, err := clientcmd.LoadFromFile(from)
	if err != nil {
		return fmt.Errorf("reading the administrator's kubeconfig: %w", err)
	}
	for _, user := range config.AuthInfos {
		user.Impersonate, user.ImpersonateGroups = name, groups
	}
	if err := clientcmd.WriteToFile(*config, to); err != nil {
		return fmt.Errorf("writing the kubeconfig of %s: %w", name, err)
	}
	return nil
}

func (c *cast) writeExample() error {
	files, err := example.ReadDir("example")
	if err != nil {
		return fmt.Errorf("reading the example: %w", err)
	}
	for _, file := range files {
		content, err := example.ReadFile("example/" + file.Name())
		if err != nil {
			return fmt.Errorf("reading the example: %w", err)
		}
		if err := os.WriteFile(filepath.Join(c.folder, file.Name()), content, 0o644); err != nil {
			return fmt.Errorf("writing the example: %w", err)
		}
	}
	return nil
}

// profile is the file that makes a shell the shell of a role.
func (c *cast) profile(who role) string { return filepath.Join(c.folder, string(who)+".sh") }

// writeProfiles writes the profile of each role. Sourcing one takes away what
// another one gave.
func (c *cast) writeProfiles() error {
	var all []string
	for _, environment := range c.environments {
		for _, variable := range environment {
			if name, _, _ := strings.Cut(variable, "="); name != "PATH" {
				all = append(all, name)
			}
		}
	}
	slices.Sort(all)
	unset := "unset " + strings.Join(slices.Compact(all), " ") + "\n"
	for who, environment := range c.environments {
		text := fmt.Sprintf("# Makes a shell that of %s: . %s\n", who, quote(c.profile(who))) + unset
		for _, variable := range environment {
			name, value, _ := strings.Cut(variable, "=")
			if value = quote(value); name == "PATH" {
				value = quote(c.path) + `:"$PATH"`
			}
			text += "export " + name + "=" + value + "\n"
		}
		text += "cd " + quote(c.folder) + "\nPS1=" + quote(string(who)+"$ ") + "\n"
		if err := os.WriteFile(c.profile(who), []byte(text), 0o600); err != nil {
			return fmt.Errorf("writing the profile of %s: %w", who, err)
		}
	}
	return nil
}

// quote makes a word of a POSIX shell out of any text. Most paths are one.
func quote(text string) string {
	if regexp.MustCompile(`^[\w/.:@%+-]+$`).MatchString(text) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// copyProgram puts a copy of this program somewhere: go run removes its own.
func copyProgram(target string) error {
	source, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	from, err := os.Open(source)
	if err != nil {
		return fmt.Errorf("copying this program: %w", err)
	}
	defer func() { _ = from.Close() }() // it was only read
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("replacing the copy of this program: %w", err)
	}
	to, err := os.OpenFile(target, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return fmt.Errorf("copying this program: %w", err)
	}
	_, err = io.Copy(to, from)
	if err := errors.Join(err, to.Close()); err != nil {
		return fmt.Errorf("copying this program: %w", err)
	}
	return nil
}
