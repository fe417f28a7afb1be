package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/taskgate/taskgate/e2e/internal/pki"
)

const (
	brokerNamespace = "taskgate-system"
	brokerAccount   = "taskgate-broker"
	// brokerUser is how the cluster calls the broker.
	brokerUser = "system:serviceaccount:" + brokerNamespace + ":" + brokerAccount

	tokenLife = 24 * time.Hour
)

// writeClientKubeconfig makes a client certificate and a kubeconfig with it.
func (t *Testbed) writeClientKubeconfig(c *cluster, name string, leaf pki.Leaf) error {
	pair, err := c.authority.Issue(leaf)
	if err != nil {
		return err
	}
	user := &clientcmdapi.AuthInfo{ClientCertificateData: pair.Certificate, ClientKeyData: pair.Key}
	server := &clientcmdapi.Cluster{Server: c.url, CertificateAuthorityData: c.authority.Certificate()}
	return writeKubeconfig(t.path("kubernetes", name+".kubeconfig"), server, leaf.CommonName, user)
}

// writeKubeconfig writes a file that only its owner may read.
func writeKubeconfig(path string, server *clientcmdapi.Cluster, userName string, user *clientcmdapi.AuthInfo) error {
	const cluster = "testbed"
	content, err := clientcmd.Write(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{cluster: server},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{userName: user},
		Contexts:       map[string]*clientcmdapi.Context{cluster: {Cluster: cluster, AuthInfo: userName}},
		CurrentContext: cluster,
	})
	if err != nil {
		return fmt.Errorf("encoding a kubeconfig: %w", err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return fmt.Errorf("writing a kubeconfig: %w", err)
	}
	return nil
}

// connect makes the administrator's kubeconfig the one of this testbed.
func (t *Testbed) connect(kubeconfig string) error {
	configuration, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("reading the kubeconfig %s: %w", kubeconfig, err)
	}
	configuration.QPS, configuration.Burst = -1, -1 // tests are in a hurry
	t.admin = configuration
	t.setEnvironment(func(e *Environment) { e.AdminKubeconfig = kubeconfig })
	return nil
}

// useCluster connects to an existing cluster, and finds out at once whether it
// answers.
func (t *Testbed) useCluster(ctx context.Context) error {
	if err := t.connect(t.options.Kubeconfig); err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(t.admin)
	if err != nil {
		return fmt.Errorf("making a client of the cluster: %w", err)
	}
	if _, err := client.CoreV1().Namespaces().Get(ctx, "default", metav1.GetOptions{}); err != nil {
		return fmt.Errorf("asking the cluster of %s (check its address and credentials): %w", t.options.Kubeconfig, err)
	}
	t.say("using the cluster at %s", t.admin.Host)
	return nil
}

// writeBrokerKubeconfig makes sure that the broker's service account exists, and
// writes a kubeconfig with a token of it.
func (t *Testbed) writeBrokerKubeconfig(ctx context.Context, path string) error {
	client, err := kubernetes.NewForConfig(t.admin)
	if err != nil {
		return fmt.Errorf("making a client of the cluster: %w", err)
	}
	if err := ensureBrokerAccount(ctx, client); err != nil {
		return err
	}
	seconds := int64(tokenLife.Seconds())
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	answer, err := client.CoreV1().ServiceAccounts(brokerNamespace).CreateToken(ctx, brokerAccount, request, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("asking for a token of %s: %w", brokerUser, err)
	}
	server, err := clusterOf(t.admin)
	if err != nil {
		return err
	}
	return writeKubeconfig(path, server, brokerAccount, &clientcmdapi.AuthInfo{Token: answer.Status.Token})
}

// clusterOf keeps of a client configuration what says where the cluster is and
// how it proves itself.
func clusterOf(configuration *rest.Config) (*clientcmdapi.Cluster, error) {
	loaded := rest.CopyConfig(configuration)
	if err := rest.LoadTLSFiles(loaded); err != nil {
		return nil, fmt.Errorf("reading the cluster's authority: %w", err)
	}
	return &clientcmdapi.Cluster{
		Server:                   loaded.Host + loaded.APIPath,
		CertificateAuthorityData: loaded.CAData,
		TLSServerName:            loaded.ServerName,
		InsecureSkipTLSVerify:    loaded.Insecure,
	}, nil
}

// ensureBrokerAccount creates what the manifests would have created.
func ensureBrokerAccount(ctx context.Context, client kubernetes.Interface) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: brokerNamespace}}
	_, namespaceErr := client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{})
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: brokerAccount}}
	_, accountErr := client.CoreV1().ServiceAccounts(brokerNamespace).Create(ctx, account, metav1.CreateOptions{})
	if err := errors.Join(unlessExists(namespaceErr), unlessExists(accountErr)); err != nil {
		return fmt.Errorf("making the broker's service account %s: %w", brokerUser, err)
	}
	return nil
}

func unlessExists(err error) error {
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}
