package sidecar

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"k8s.io/apimachinery/pkg/runtime"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	clientcmdlatest "k8s.io/client-go/tools/clientcmd/api/latest"

	"github.com/taskgate/taskgate/identity"
)

const (
	kubeconfigFile = "kubeconfig"
	// serviceAccountDir holds what clients look for under
	// /var/run/secrets/kubernetes.io/serviceaccount.
	serviceAccountDir = "serviceaccount"
	tokenFile         = serviceAccountDir + "/token"
)

// agentFiles are what the agent's clients read. The folder may be writable by the
// agent; therefore everything goes through an os.Root, which no symbolic link
// leads out of.
type agentFiles struct {
	dir       string // absolute
	mode      fs.FileMode
	namespace string
}

// write replaces each file as a whole, so that a client never reads half of one.
// server is the address of the endpoint, host:port.
func (f agentFiles) write(authority *identity.LocalAuthority, server string) error {
	kubeconfig, err := f.kubeconfig(authority.CACertificatePEM(), server)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.dir, f.folderMode()); err != nil {
		return err
	}
	root, err := os.OpenRoot(f.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Mkdir(serviceAccountDir, f.folderMode()); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := root.Chmod(serviceAccountDir, f.folderMode()); err != nil { // whatever the umask is
		return err
	}
	for _, file := range []struct {
		name    string
		content []byte
	}{
		{serviceAccountDir + "/ca.crt", authority.CACertificatePEM()},
		{serviceAccountDir + "/namespace", []byte(f.namespace)},
		{tokenFile, []byte(authority.Token())},
		{kubeconfigFile, kubeconfig},
	} {
		if err := f.replace(root, file.name, file.content); err != nil {
			return err
		}
	}
	return nil
}

// present returns an error if a file a client needs is missing.
func (f agentFiles) present() error {
	for _, name := range []string{kubeconfigFile, tokenFile} {
		if _, err := os.Stat(filepath.Join(f.dir, name)); err != nil {
			return fmt.Errorf("%w; restart the sidecar to write it again", err)
		}
	}
	return nil
}

// kubeconfig names the token file instead of holding the token, so that it may
// be copied and shown.
func (f agentFiles) kubeconfig(ca []byte, server string) ([]byte, error) {
	const name = "taskgate"
	return runtime.Encode(clientcmdlatest.Codec, &clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{name: {Server: "https://" + server, CertificateAuthorityData: ca}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: {TokenFile: filepath.Join(f.dir, tokenFile)}},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name, Namespace: f.namespace}},
		CurrentContext: name,
	})
}

func (f agentFiles) replace(root *os.Root, name string, content []byte) error {
	temporary := name + ".new"
	if err := root.RemoveAll(temporary); err != nil { // of a start that was interrupted
		return err
	}
	file, err := root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err := errors.Join(err, file.Chmod(f.mode), file.Sync(), file.Close()); err != nil {
		return err
	}
	return root.Rename(temporary, name)
}

// folderMode lets those enter who may read the files.
func (f agentFiles) folderMode() fs.FileMode { return 0o700 | f.mode | f.mode>>2&0o111 }
