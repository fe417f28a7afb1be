package nodehost

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// The networks of nodes are taken from RFC 2544's range for tests between
// machines, which neither the internet nor a company uses.
const (
	nodeNetworks     = 512 // of a /15
	nodeNetworkBits  = 24
	firstNodeNetwork = 198<<24 | 18<<16
)

// Claim picks a network that nothing on this machine uses, and keeps other
// testbeds from it until the claim is closed or we end. Directories rarely even
// try the same one first.
func Claim(directory string) (netip.Prefix, net.Listener, error) {
	hash := sha256.Sum256([]byte(directory))
	first := binary.BigEndian.Uint32(hash[:])
	for i := range uint32(nodeNetworks) {
		prefix := nodeNetwork((first + i) % nodeNetworks)
		claim, err := net.Listen("unix", "@taskgate-testbed-"+prefix.String()) // @: no file, known to this machine only
		if err != nil {
			continue
		}
		taken, err := inUse(prefix)
		if err == nil && !taken {
			return prefix, claim, nil
		}
		_ = claim.Close() // it was for nothing
		if err != nil {
			return netip.Prefix{}, nil, err
		}
	}
	return netip.Prefix{}, nil, errors.New("every network of 198.18.0.0/15 is in use on this machine: take testbeds down")
}

func nodeNetwork(number uint32) netip.Prefix {
	var address [4]byte
	binary.BigEndian.PutUint32(address[:], firstNodeNetwork+number<<(32-nodeNetworkBits))
	return netip.PrefixFrom(netip.AddrFrom4(address), nodeNetworkBits)
}

func inUse(prefix netip.Prefix) (bool, error) {
	// Two interfaces with the same network would answer for each other.
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return false, fmt.Errorf("looking for a free network: %w", err)
	}
	for _, address := range addresses {
		if other, err := netip.ParsePrefix(address.String()); err == nil && other.Overlaps(prefix) {
			return true, nil
		}
	}
	return false, nil
}
