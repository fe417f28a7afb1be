package broker

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// clusterConfig reads how to reach a cluster. The configuration must not
// impersonate on its own, or two principals would mix.
func clusterConfig(cluster *Cluster) (*rest.Config, error) {
	config, err := rest.InClusterConfig()
	if cluster.Kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", cluster.Kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("reading how to reach the cluster: %w; set guarded.kubeconfig outside of a pod", err)
	}
	if config.Impersonate.UserName != "" || len(config.Impersonate.Groups) > 0 || len(config.Impersonate.Extra) > 0 {
		return nil, errors.New("the kubeconfig impersonates somebody; the broker has to use its own account")
	}
	return config, nil
}

// clusters says how to reach the clusters: the guarded one with the calls of
// agents, and both with the broker's own.
type clusters struct{ agents, guarded, control *rest.Config }

func openClusters(config *Configuration) (*clusters, error) {
	agents, err := clusterConfig(&config.Guarded)
	if err != nil {
		return nil, err
	}
	guarded, err := ownClient(agents)
	if err != nil {
		return nil, err
	}
	control, err := clusterConfig(config.Control)
	if err != nil {
		return nil, err
	}
	if control, err = ownClient(control); err != nil {
		return nil, err
	}
	return &clusters{agents: agents, guarded: guarded, control: control}, nil
}

// ownClient is the configuration of the clients for the broker's own calls. Their
// connection is pinged, so that one which is lost without a word is replaced after
// 15 s, long before what was last seen is too old to decide by (30 s). client-go by
// itself takes 45 s.
func ownClient(config *rest.Config) (*rest.Config, error) {
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, fmt.Errorf("reading the TLS settings of the cluster: %w", err)
	}
	own := rest.CopyConfig(config)
	own.TLSClientConfig = rest.TLSClientConfig{} // is in the transport
	own.Transport = &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSClientConfig:     tlsConfig,
		DialContext:         newDialer().DialContext,
		TLSHandshakeTimeout: 5 * time.Second,
		MaxIdleConnsPerHost: 25,
		IdleConnTimeout:     80 * time.Second,
		ForceAttemptHTTP2:   true,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
	}
	return own, nil
}
