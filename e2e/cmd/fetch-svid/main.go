// Command fetch-svid prints the SPIFFE ID that the Workload API gives it, or why it
// gives none. Tests run it in containers: fetch-svid unix:///path.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: fetch-svid ADDRESS")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	svid, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr(os.Args[1]))
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fetch-svid:", err)
		os.Exit(1)
	}
	fmt.Println(svid.ID)
}
