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
	"reflect"
	"unsafe"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/builtin/logical/transit"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
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

var engine = complete(transit.Factory)

// builtin is the registry of what is built in: the transit engine.
type builtin struct{}

func (builtin) Contains(name string, kind consts.PluginType) bool {
	return name == "transit" && kind == consts.PluginTypeSecrets
}

func (b builtin) Get(name string, kind consts.PluginType) (func() (interface{}, error), bool) {
	return func() (interface{}, error) { return logical.Factory(transit.Factory), nil }, b.Contains(name, kind)
}

func (builtin) Keys(kind consts.PluginType) []string {
	if kind == consts.PluginTypeSecrets {
		return []string{"transit"}
	}
	return nil
}

func (b builtin) DeprecationStatus(name string, kind consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, b.Contains(name, kind)
}

func (builtin) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }

// complete gives the paths of a backend the existence check that the published sdk insists on and this release was
// built without, for its own sdk was never published by itself. They are not those that the tests ask for.
func complete(factory logical.Factory) logical.Factory {
	return func(ctx context.Context, config *logical.BackendConfig) (logical.Backend, error) {
		made, err := factory(ctx, config)
		if err != nil {
			return nil, err
		}
		// each backend has the framework's embedded, and hides it from whoever has the interface alone
		base := reflect.Indirect(reflect.ValueOf(made)).FieldByName("Backend").Interface().(*framework.Backend)
		for _, path := range base.Paths {
			_, creates := path.Operations[logical.CreateOperation]
			_, calledBack := path.Callbacks[logical.CreateOperation]
			if (creates || calledBack) && path.ExistenceCheck == nil {
				path.ExistenceCheck = func(context.Context, *logical.Request, *framework.FieldData) (bool, error) {
					return false, nil
				}
			}
		}
		return made, nil
	}
}

// completeSystem does it for the system backend, whose factory has no setter.
func completeSystem(core *vault.Core) {
	field := reflect.ValueOf(core).Elem().FieldByName("logicalBackends")
	factories := reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem().
		Interface().(map[string]logical.Factory)
	factories["system"] = complete(factories["system"])
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
		LogicalBackends: map[string]logical.Factory{"transit": engine},
		BuiltinRegistry: builtin{},
		DisableMlock:    true,
		Logger:          logger,
		RedirectAddr:    address,
	})
	must(err)
	completeSystem(core)
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
