package wire

import (
	"github.com/go-json-experiment/json/jsontext"
)

// rebuildable says whether an answer can be put together from a stream although
// the request has this member: the official parameters and the servers' common
// extensions that change which tokens come, and nothing else about the answer.
// Left out are those whose answer cannot be told from the chunks: audio,
// log probabilities (servers leave some out of a stream), citations of a search,
// progress reports, hidden states.
func rebuildable(name []byte, v jsontext.Value) bool {
	switch string(name) {
	case "n", "best_of": // one choice
		return v.Kind() == 'n' || string(v) == "1"
	case "echo", "logprobs", "use_beam_search":
		return v.Kind() == 'n' || v.Kind() == 'f'
	case "top_logprobs", "prompt_logprobs", "modalities", "audio", "functions", "function_call":
		return v.Kind() == 'n'

	case "temperature", "top_p", "stop", "seed", "frequency_penalty", "presence_penalty", "logit_bias", "suffix",
		"tools", "tool_choice", "parallel_tool_calls", "response_format", "prediction", "reasoning_effort", "verbosity",
		"service_tier", "store", "safety_identifier", "prompt_cache_key", "prompt_cache_retention":
		return true // OpenAI
	case "thinking", "user_id":
		return true // DeepSeek
	case "top_k", "min_p", "repetition_penalty", "length_penalty", "stop_token_ids", "include_stop_str_in_output",
		"ignore_eos", "min_tokens", "skip_special_tokens", "spaces_between_special_tokens", "truncate_prompt_tokens",
		"bad_words", "allowed_token_ids", "add_generation_prompt", "continue_final_message", "add_special_tokens",
		"documents", "chat_template", "chat_template_kwargs", "mm_processor_kwargs", "include_reasoning",
		"structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
		"guided_decoding_backend", "guided_whitespace_pattern", "priority", "request_id", "cache_salt":
		return true // vLLM
	case "regex", "ebnf", "json_schema", "no_stop_trim", "separate_reasoning", "lora_path":
		return true // SGLang
	case "grammar", "cache_prompt", "id_slot", "samplers", "typical_p", "repeat_penalty", "repeat_last_n",
		"mirostat", "mirostat_tau", "mirostat_eta", "dynatemp_range", "dynatemp_exponent", "n_keep", "n_predict",
		"dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "xtc_probability", "xtc_threshold",
		"reasoning_format":
		return true // llama.cpp
	}
	return false
}
