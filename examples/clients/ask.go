// Asks a bank over HTTP with plain JSON: go run ask.go [http://127.0.0.1:8000] [text] [expert]
// The standard library is enough.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"time"
)

type input struct {
	Name     string   `json:"name"`
	Shape    []int    `json:"shape"`
	Datatype string   `json:"datatype"`
	Data     []string `json:"data"`
}

type output struct {
	Name string            `json:"name"`
	Data []json.RawMessage `json:"data,omitempty"`
}

type request struct {
	Inputs  []input  `json:"inputs"`
	Outputs []output `json:"outputs"`
}

type answer struct {
	Outputs []output `json:"outputs"`
	Error   string   `json:"error"`
}

func argument(at int, otherwise string) string {
	if len(os.Args) > at {
		return os.Args[at]
	}
	return otherwise
}

func ask(url, text, expert string) (map[string][]json.RawMessage, error) {
	row := func(name, value string) input { return input{name, []int{1, 1}, "BYTES", []string{value}} }
	body, err := json.Marshal(request{
		[]input{row("TEXT", text), row("EXPERT", expert)},
		[]output{{Name: "LABEL"}, {Name: "DIGEST"}},
	})
	if err != nil {
		return nil, err
	}
	client := http.Client{Timeout: 30 * time.Second}
	response, err := client.Post(url+"/v2/models/pidep_bank/infer", "application/json", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var found answer
	if err := json.NewDecoder(response.Body).Decode(&found); err != nil {
		return nil, err
	}
	// 400: a wrong row; 404: no such expert; 503: the server sheds load, ask again later.
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", response.Status, found.Error)
	}
	byName := map[string][]json.RawMessage{}
	for _, one := range found.Outputs {
		byName[one.Name] = one.Data
	}
	return byName, nil
}

func main() {
	found, err := ask(argument(1, "http://127.0.0.1:8000"), argument(2, "a wonderful film"), argument(3, "movie"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("label %s digest %s\n", found["LABEL"][0], found["DIGEST"][0])
}
