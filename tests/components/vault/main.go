// A Vault server with the transit engine and nothing else, in memory, on the loopback.
//
// Vault's own core, with its tokens, policies, seal and HTTP API; what is left out are the storage, engines and
// sign-ins that the tests do not need. 1.14 is the last line under the Mozilla Public License, and the one that
// OpenBao comes from. It prints one line of JSON when it is ready, and ends when its standard input does.
package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/builtin/logical/transit"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical/inmem"
	"github.com/hashicorp/vault/vault"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: os.Stderr})
	storage, err := inmem.NewInmem(nil, logger)
	must(err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	address := "http://" + listener.Addr().String()
	core, err := vault.NewCore(&vault.CoreConfig{
		Physical:        storage,
		LogicalBackends: map[string]logical.Factory{"transit": transit.Factory},
		DisableMlock:    true,
		Logger:          logger,
		RedirectAddr:    address,
	})
	must(err)
	made, err := core.Initialize(context.Background(), &vault.InitParams{
		BarrierConfig: &vault.SealConfig{SecretShares: 1, SecretThreshold: 1},
	})
	must(err)
	go func() {
		must(http.Serve(listener, vaulthttp.Handler.Handler(&vault.HandlerProperties{Core: core})))
	}()
	_, err = core.Unseal(made.SecretShares[0])
	must(err)
	must(json.NewEncoder(os.Stdout).Encode(map[string]string{
		"address": address,
		"token":   made.RootToken,
		"unseal":  hex.EncodeToString(made.SecretShares[0]),
	}))
	_, _ = io.Copy(io.Discard, os.Stdin)
}
