package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Names a client on the same host may call the sidecar by. They stand in its
// serving certificate, and it answers to no other Host.
func localNames() []string {
	return []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
}

func localAddresses() []net.IP { return []net.IP{net.IPv4(127, 0, 0, 1).To4(), net.IPv6loopback} }

const (
	localFile = "local-authority.pem"
	// The authority outlives every pod, because clients keep its certificate.
	authorityLife   = 10 * 365 * 24 * time.Hour
	authorityMargin = 365 * 24 * time.Hour
	servingLife     = 30 * 24 * time.Hour
	tokenBytes      = 32
	maxLocalFile    = 64 << 10

	certificateBlock = "CERTIFICATE"
	keyBlock         = "PRIVATE KEY"
	tokenBlock       = "TASKGATE LOCAL TOKEN"
)

// LocalAuthority is what a sidecar shows its agent on localhost: a throw-away
// certificate authority, a serving certificate and the local token. It says
// nothing about who the agent is; the token only shows that a caller may read a
// file in this pod. Safe for concurrent use. The zero value accepts no token.
type LocalAuthority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	token       []byte // base64url text
	made        string
	now         func() time.Time

	mu      sync.Mutex
	serving *tls.Certificate
}

// OpenLocalAuthority loads the authority from dir, so that clients which run
// already can go on after a restart. If there is none, or it is damaged, may have
// been read by others or has less than a year left, a new one is made and stored
// ([LocalAuthority.Made] says which).
//
// dir belongs to the authority alone: it is made if missing, with mode 0700; one
// that others may enter is closed to them, or refused if it holds other files. The file in it has mode 0600 and is replaced
// as a whole. now is the clock; nil means time.Now.
func OpenLocalAuthority(dir string, now func() time.Time) (*LocalAuthority, error) {
	if now == nil {
		now = time.Now
	}
	if err := privateFolder(dir); err != nil {
		return nil, fmt.Errorf("opening the folder of the local authority: %w", err)
	}
	path := filepath.Join(dir, localFile)
	authority, loadErr := loadLocal(path, now)
	if loadErr == nil {
		return authority, nil
	}
	authority, err := makeLocal(now)
	if err != nil {
		return nil, fmt.Errorf("making the local authority: %w", err)
	}
	authority.made = loadErr.Error()
	if errors.Is(loadErr, fs.ErrNotExist) {
		authority.made = "first start"
	}
	if err := authority.store(path); err != nil {
		return nil, fmt.Errorf("storing the local authority: %w; give it a writable folder of its own", err)
	}
	return authority, nil
}

// Made says why the authority is a new one; it is empty for one that was loaded.
func (a *LocalAuthority) Made() string { return a.made }

// CACertificatePEM is the authority's certificate, for clients to trust.
func (a *LocalAuthority) CACertificatePEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: a.certificate.Raw})
}

// Token is the local token: 256 random bits as base64url text (RFC 4648).
func (a *LocalAuthority) Token() string { return string(a.token) }

// CheckToken reports whether presented is the local token, in a time that does
// not depend on how much of it is right. Nothing matches an empty token.
func (a *LocalAuthority) CheckToken(presented string) bool {
	return len(a.token) > 0 && subtle.ConstantTimeCompare([]byte(presented), a.token) == 1
}

// Names are the host names and addresses in the serving certificate.
func (a *LocalAuthority) Names() []string {
	names := localNames()
	for _, address := range localAddresses() {
		names = append(names, address.String())
	}
	return names
}

// ServerTLS makes the configuration of the local endpoint. TLS 1.2 is allowed,
// since clients in an agent's image may be old and nothing leaves the host; no
// client certificate is asked for and no session is resumed.
func (a *LocalAuthority) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS12,
		NextProtos:             []string{"h2", "http/1.1"},
		SessionTicketsDisabled: true,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return a.servingCertificate() },
	}
}

// servingCertificate is never stored: it is made at the start and again at half
// its life, so no process runs long enough to see it end.
func (a *LocalAuthority) servingCertificate() (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if a.serving != nil && now.Before(a.serving.Leaf.NotAfter.Add(-servingLife/2)) {
		return a.serving, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf, err := signLocal(&x509.Certificate{
		Subject:               pkix.Name{CommonName: "taskgate sidecar"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(servingLife),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:              localNames(),
		IPAddresses:           localAddresses(),
	}, a.certificate, key, a.key)
	if err != nil {
		return nil, fmt.Errorf("making the serving certificate: %w", err)
	}
	a.serving = &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	return a.serving, nil
}

func makeLocal(now func() time.Time) (*LocalAuthority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "taskgate sidecar, local authority"},
		NotBefore:             now().Add(-time.Hour), // clocks are set back now and then
		NotAfter:              now().Add(authorityLife),
		IsCA:                  true,
		MaxPathLenZero:        true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	certificate, err := signLocal(template, template, key, key)
	if err != nil {
		return nil, err
	}
	random := make([]byte, tokenBytes)
	rand.Read(random) // never fails (crypto/rand)
	return &LocalAuthority{certificate: certificate, key: key, token: tokenText(random), now: now}, nil
}

func signLocal(template, parent *x509.Certificate, subject, signer *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, subject.Public(), signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func tokenText(random []byte) []byte {
	return base64.RawURLEncoding.AppendEncode(nil, random)
}

// loadLocal fails on everything that is not exactly what store writes; the
// caller then makes a new authority.
func loadLocal(path string, now func() time.Time) (*LocalAuthority, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxLocalFile {
		return nil, errors.New("the stored one is not a file this program wrote")
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("others could read the stored one (mode %04o)", info.Mode().Perm())
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	authority, err := parseLocal(content)
	if err != nil {
		return nil, fmt.Errorf("the stored one is damaged: %w", err)
	}
	if end := authority.certificate.NotAfter; now().Add(authorityMargin).After(end) {
		return nil, fmt.Errorf("the stored one ends at %s", end.UTC().Format(time.RFC3339))
	}
	if start := authority.certificate.NotBefore; now().Before(start) {
		return nil, fmt.Errorf("the stored one begins at %s", start.UTC().Format(time.RFC3339))
	}
	authority.now = now
	return authority, nil
}

func parseLocal(content []byte) (*LocalAuthority, error) {
	blocks := map[string][]byte{}
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		blocks[block.Type] = block.Bytes
	}
	certificate, err := x509.ParseCertificate(blocks[certificateBlock])
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	// A flipped bit anywhere in the certificate breaks its own signature.
	if err := certificate.CheckSignatureFrom(certificate); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(blocks[keyBlock])
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(certificate.PublicKey) {
		return nil, errors.New("the key is not that of the certificate")
	}
	// A shortened token would be a weak one.
	if len(blocks[tokenBlock]) != tokenBytes {
		return nil, errors.New("the token is not complete")
	}
	return &LocalAuthority{certificate: certificate, key: key, token: tokenText(blocks[tokenBlock])}, nil
}

// store writes everything into one file, so that certificate, key and token can
// never be of different authorities.
func (a *LocalAuthority) store(path string) error {
	key, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return err
	}
	random, err := base64.RawURLEncoding.DecodeString(string(a.token))
	if err != nil {
		return err
	}
	var content bytes.Buffer
	for _, block := range []*pem.Block{
		{Type: certificateBlock, Bytes: a.certificate.Raw},
		{Type: keyBlock, Bytes: key},
		{Type: tokenBlock, Bytes: random},
	} {
		if err := pem.Encode(&content, block); err != nil {
			return err
		}
	}
	return replaceFile(path, content.Bytes())
}

// replaceFile leaves either the old or the new content, also after a crash.
func replaceFile(path string, content []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) // nothing is left of it after the rename
	if _, err := file.Write(content); err != nil {
		file.Close()
		return err
	}
	if err := errors.Join(file.Sync(), file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}

// privateFolder makes dir, or makes sure that nobody else can enter it.
func privateFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a folder", dir)
	}
	if info.Mode().Perm()&0o077 == 0 {
		return nil
	}
	// Never take over a folder others use, such as /tmp.
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(entries, func(entry fs.DirEntry) bool { return entry.Name() != localFile }) {
		return fmt.Errorf("others may enter %s and it holds other files; name a folder of its own", dir)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("others may enter it and that cannot be changed: %w; name a folder inside the volume, not the volume itself", err)
	}
	return nil
}
