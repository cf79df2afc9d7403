"""Chat templates in the shapes that models ship, and conversations to put through them."""

from __future__ import annotations

from typing import Any

BEGIN, USER, ASSISTANT, END = "<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"

TEMPLATES: dict[str, str] = {
    # DeepSeek
    "v2": (
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ 'User: ' + message['content'] + '\\n\\n' }}{% elif message['role'] == 'assistant' %}"
        "{{ 'Assistant: ' + message['content'] + eos_token }}{% elif message['role'] == 'system' %}"
        "{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    "v3": f"""{{% set ns = namespace(is_first=false, is_tool=false, system='', first_sp=true) %}}
{{%- for message in messages %}}
    {{%- if message.role == 'system' %}}
        {{%- if ns.first_sp %}}{{% set ns.system = ns.system + message.content %}}{{% set ns.first_sp = false %}}
        {{%- else %}}{{% set ns.system = ns.system + '\\n\\n' + message.content %}}{{% endif %}}
    {{%- endif %}}
{{%- endfor %}}
{{{{- bos_token }}}}{{{{ ns.system }}}}
{{%- for message in messages %}}
    {{%- if message.role == 'user' %}}{{% set ns.is_tool = false -%}}
{USER}{{{{ message.content }}}}
    {{%- elif message.role == 'assistant' and message.tool_calls %}}
        {{%- for call in message.tool_calls %}}
            {{%- if not ns.is_first %}}{ASSISTANT}<tools>{{{{ call.function.name }}}}
```json
{{{{ call.function.arguments | tojson }}}}
```{{% set ns.is_first = true %}}{{% else %}}{{{{ '\\n' + call.function.name }}}}{{% endif %}}
        {{%- endfor %}}</tools>{END}
    {{%- elif message.role == 'assistant' %}}{{% if ns.is_tool %}}</outputs>{{% endif -%}}
{ASSISTANT}{{{{ message.content }}}}{END}
    {{%- elif message.role == 'tool' %}}{{% set ns.is_tool = true %}}<outputs>{{{{ message.content }}}}
    {{%- endif %}}
{{%- endfor %}}
{{%- if add_generation_prompt and not ns.is_tool %}}{ASSISTANT}{{% endif %}}
""",
    "r1": f"""{{{{ bos_token }}}}{{% for m in messages %}}{{% if m.role == 'user' %}}{USER}{{{{ m.content }}}}
{{%- elif m.role == 'assistant' and m.content is not none %}}{{% set content = m.content %}}
{{%- if content is string and '</think>' in content %}}
{{%- set content = content.split('</think>')[-1].lstrip() %}}{{% endif %}}{ASSISTANT}{{{{ content }}}}{END}
{{%- endif %}}{{% endfor %}}{{% if add_generation_prompt %}}{ASSISTANT}<think>
{{% endif %}}""",
    "v3.1": f"""{{% if thinking is not defined %}}{{% set thinking = false %}}{{% endif -%}}
{{% set ns = namespace(last_user=false) %}}{{{{ bos_token }}}}
{{%- if tools is defined and tools is not none %}}
## Tools
{{% for tool in tools %}}
### {{{{ tool.function.name }}}}
Description: {{{{ tool.function.description }}}}

Parameters: {{{{ tool.function.parameters | tojson }}}}
{{% endfor %}}
{{%- endif %}}
{{%- for m in messages %}}
{{%- if m['role'] == 'user' %}}{{% set ns.last_user = true %}}{USER}{{{{ m['content'] }}}}{{% endif %}}
{{%- if m['role'] == 'assistant' %}}{{% if ns.last_user %}}{ASSISTANT}{{% endif %}}{{% set ns.last_user = false %}}
{{%- if m['prefix'] is defined and m['prefix'] and thinking %}}<think>{{% else %}}</think>{{% endif %}}
{{{{- m['content'] if m['content'] is defined and m['content'] is not none else '' }}}}{END}{{% endif %}}
{{%- endfor %}}
{{%- if add_generation_prompt and ns.last_user %}}{ASSISTANT}
{{{{- '<think>' if thinking else '</think>' }}}}{{% endif %}}""",
    # Moonshot
    "kimi-k2": """{%- if tools -%}
<|im_system|>tool_declare<|im_middle|>{{ tools | tojson(separators=(',', ':')) }}<|im_end|>
{%- endif -%}
{%- for message in messages -%}
{%- if loop.first and messages[0]['role'] != 'system' -%}
<|im_system|>system<|im_middle|>You are Kimi, an AI assistant.<|im_end|>
{%- endif -%}
{%- set role_name = message.get('name') or message['role'] -%}
{%- if message['role'] == 'user' -%}<|im_user|>{{ role_name }}<|im_middle|>
{%- elif message['role'] == 'assistant' -%}<|im_assistant|>{{ role_name }}<|im_middle|>
{%- else -%}<|im_system|>{{ role_name }}<|im_middle|>
{%- endif -%}
{%- if message['role'] == 'assistant' and message.get('tool_calls') -%}
{{ message['content'] }}<|tool_calls_section_begin|>
{%- for tool_call in message['tool_calls'] -%}
<|tool_call_begin|>{{ tool_call['id'] }}<|tool_call_argument_begin|>
{%- if tool_call['function']['arguments'] is string -%}{{ tool_call['function']['arguments'] }}
{%- else -%}{{ tool_call['function']['arguments'] | tojson }}{%- endif -%}<|tool_call_end|>
{%- endfor -%}<|tool_calls_section_end|>
{%- elif message['role'] == 'tool' -%}## Return of {{ message.tool_call_id }}
{{ message['content'] }}
{%- elif message['content'] is string -%}{{ message['content'] }}
{%- elif message['content'] is not none -%}
{% for content in message['content'] -%}
{% if content['type'] == 'image' or 'image' in content -%}<|media_pad|>{% else -%}{{ content['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- endif -%}
""",
    "kimi-k2-thinking": """{%- macro render_content(msg) -%}
{%- set c = msg.get('content') -%}{%- if c is string -%}{{ c }}{%- elif c is not none -%}
{% for content in c -%}{{ content['text'] if 'text' in content else '[image]' }}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last_non_tool_call=-1) -%}
{%- for idx in range(messages | length - 1, -1, -1) -%}
{%- if messages[idx].role == 'assistant' and not messages[idx].get('tool_calls') -%}
{%- set ns.last_non_tool_call = idx -%}{%- break -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages[: ns.last_non_tool_call + 1] -%}
<{{ message.role }}>{{ '<think></think>' if message.role == 'assistant' }}{{ render_content(message) }}<|im_end|>
{%- endfor -%}
{%- for message in messages[ns.last_non_tool_call + 1 :] -%}
<{{ message.role }}>{%- if message.role == 'assistant' -%}
<think>{{ message.get('reasoning_content', '') }}</think>{%- endif -%}{{ render_content(message) }}<|im_end|>
{%- endfor -%}{{ '<assistant>' if add_generation_prompt }}""",
    # Zhipu
    "glm-4": """[gMASK]<sop>{% for item in messages %}{% if item['tools'] is defined %}<|system|>
{{ item['tools'] | tojson(indent=4) }}{% endif %}{% if item['content'] %}<|{{ item['role'] }}|>{{ item['metadata'] }}
{{ item['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}""",
    "glm-4.7": """[gMASK]<sop>
{%- if tools -%}
<|system|>
# Tools
<tools>
{% for tool in tools %}
{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}
</tools>{%- endif -%}
{%- macro visible_text(content) -%}
    {%- if content is string -%}
        {{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}
            {%- if item is mapping and item.type == 'text' -%}{{- item.text }}
            {%- elif item is string -%}{{- item }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{- content }}
    {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last_user_index=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{% set ns.last_user_index = loop.index0 -%}{%- endif %}{%- endfor %}
{% for m in messages %}
{%- if m.role == 'user' -%}<|user|>
{{ visible_text(m.content) }}
{{- '/nothink' if enable_thinking is defined and not enable_thinking and not visible_text(m.content).endswith('/nothink') }}
{%- elif m.role == 'assistant' -%}
<|assistant|>
{%- set reasoning_content = '' %}{%- set content = visible_text(m.content) %}
{%- if m.reasoning_content is string %}{%- set reasoning_content = m.reasoning_content %}
{%- elif '</think>' in content %}
{%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
{%- if loop.index0 > ns.last_user_index and reasoning_content -%}
{{ '\\n<think>' + reasoning_content.strip() + '</think>' }}{%- else -%}{{ '\\n<think></think>' }}{%- endif -%}
{%- if content.strip() -%}{{ '\\n' + content.strip() }}{%- endif -%}
{% if m.tool_calls %}{% for tc in m.tool_calls %}{%- set tc = tc.function if tc.function else tc %}
{{ '\\n<tool_call>' + tc.name }}
{% set _args = tc.arguments %}{% for k, v in _args.items() %}<arg_key>{{ k }}</arg_key>
<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>
{% endfor %}</tool_call>{% endfor %}{% endif %}
{%- elif m.role == 'tool' -%}
{%- if loop.first or (messages[loop.index0 - 1].role != 'tool') %}{{- '<|observation|>' }}{%- endif %}
{{- '\\n<tool_response>\\n' }}{{- m.content }}{{- '\\n</tool_response>' }}
{%- elif m.role == 'system' -%}<|system|>
{{ visible_text(m.content) }}
{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>
{{- '\\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' -}}{%- endif -%}""",
    # Qwen
    "qwen2.5": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- else %}{{- 'You are Qwen.' }}{%- endif %}
    {{- "\\n\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or
            (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
""",
    "qwen3": """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
        and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = message.reasoning_content if message.reasoning_content is string else '' %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}{{- content }}{%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    # Meta
    "llama2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama3.1": """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("only single tool-calls at once!") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}{{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
""",
    # Mistral
    "mistral": (
        "{%- for m in messages %}{%- if m.role == 'user' %}{{- ' [INST] ' + m.content + ' [/INST]' }}"
        "{%- elif m.role == 'assistant' %}{{- ' ' + m.content + '</s>' }}{%- else %}"
        "{{- raise_exception('Only user and assistant roles are supported!') }}{%- endif %}{%- endfor %}"
    ),
    "mistral-tools": """{%- set loop_messages = messages | rejectattr('role', 'equalto', 'system') | list %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}
                    {%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}{{- out[:-1] }}{{- ', "id": "' + tool_call.id + '"}' }}
        {%- endfor %}{{- "]" + eos_token }}
    {%- elif message["role"] == "assistant" %}{{- " " + message["content"]|trim + eos_token }}
    {%- elif message["role"] in ["tool_results", "tool"] %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + ', "call_id": "' + message.tool_call_id + '"}' }}
    {%- else %}{{- raise_exception("Only user and assistant roles are supported") }}{%- endif %}
{%- endfor %}
""",
    # further shapes
    "chatml": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
        "'\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "generation-blocks": """{% for m in messages %}{% if m.role == 'assistant' %}
{%- set x = 'outer' %}{% generation %}{% set x = 'inner' %}{{ m.content }}{{ eos_token }}
{% endgeneration %}{{ x }}{% else %}
[{{ m.role }}] {{ m.content }}
{% endif %}{% endfor %}""",
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
        "{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
    ),
    "loop-controls": """{% for m in messages %}
    {% if m.role == 'system' %}{% continue %}{% endif %}
    {{ loop.index }}/{{ loop.length }} {{ m.role | upper }}: {{ m.content }}
    {% if loop.index > 3 %}{% break %}{% endif %}
{% endfor %}
{% if add_generation_prompt %}
    go
{% endif %}
""",
    "json": (
        "{{ messages | tojson }}\n{{ messages | tojson(indent=2, sort_keys=true) }}"
        "{{ messages[0] | tojson(ensure_ascii=true) }}{{ '<&>\\'\"' | tojson }}{{ {'b': 1, 'a': [1.5, none, true]} | tojson }}"
    ),
    "special-tokens": (
        "{{ bos_token }}{{ bos_token is defined }}{{ eos_token }}{{ unk_token is defined }}{{ pad_token is defined }}"
        "{{ sep_token }}{{ messages[0].content }}{{ eos_token }}"
    ),
    "granite": """{%- set today = strftime_now('%Y') | int %}{% set ns = namespace(total=0) %}
{%- for m in messages recursive %}{% set ns.total = ns.total + (m.role | default('', true) | length) %}{% endfor %}
{{- today > 2000 }} {{ ns.total }} {{ documents is none }} {{ tools is none }} {{ controls | default('none given') }}
{%- for m in messages %}{{ '\\n' }}{{ m.role.title() }}{{ ': ' ~ m.content ~ '!' }}{% endfor %}""",
    "dicts": """{% set d = dict(a=1, b=messages|length) %}{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}
{%- set last = messages | last %}{{ last.role }}{{ last.get('name', 'nobody') }}{{ 'x' in last }}
{%- for k, v in last | dictsort %}{{ k }}{% endfor %}{{ messages | map(attribute='role') | join(',') }}""",
    "forbidden": "{{ messages.append(1) }}{{ ''.__class__.__mro__ }}",
    "private-namespace": "{% set ns = namespace() %}{% set ns._x = 1 %}{{ ns._x }}",
    "broken": "{% for m in messages %}{{ m.content }}",
    "divides": "{{ 1 / (messages | length - 1) }}",
}

CALL = {"id": "functions.get_weather:0", "type": "function", "function": {
    "name": "get_weather", "arguments": {"city": "北京", "days": 2, "x": None}}}  # fmt: skip
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hello, who are you?"}],
    "system": [{"role": "system", "content": "  Be brief.\n"}, {"role": "user", "content": " hi \n"}],
    "turns": [
        {"role": "user", "content": "1 < 2 & 'quotes' \"double\" {{ not a variable }} <b>"},
        {"role": "assistant", "content": "<think>\nlet me see\n</think>\n\nYes: 你好 👩‍👩‍👧‍👦"},
        {"role": "user", "content": "Warum?\r\n\tTab"},
        {"role": "assistant", "content": "Darum.", "reasoning_content": "easy\n"},
        {"role": "user", "content": "ok"},
    ],
    "tools": [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "Weather?", "name": "Ann"},
        {"role": "assistant", "content": None, "reasoning": "a tool", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"t": 3.5}', "tool_call_id": "functions.get_weather:0", "name": "get_weather"},
        {"role": "tool", "content": "second", "tool_call_id": "x"},
    ],
    "two-calls": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "7", "tool_call_id": "y"},
        {"role": "assistant", "content": "It is 7 degrees."},
    ],
    "blocks": [
        {
            "role": "user",
            "content": [{"type": "text", "text": "look "}, {"type": "image"}, {"type": "text", "text": "!"}],
        }
    ],
    "special": [{"role": "user", "content": f"{BEGIN}not a start{END}<|im_end|>"}],
    "prefill": [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "one, two,  "}],
    "odd-roles": [{"role": "assistant", "content": "I begin"}, {"role": "critic", "content": "bad", "thinking": "t"}],
}

TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "Wetter für <Ort> & Tag",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }},
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {}}},
]  # fmt: skip

VARIABLES: tuple[dict[str, Any], ...] = (
    {},
    {"add_generation_prompt": False},
    {"tools": TOOLS},
    {"enable_thinking": False, "thinking": True},
    {"add_generation_prompt": False, "continue_final_message": True},
)

NAMED = [{"name": n, "template": f"{n}: {{{{ messages[0].content }}}}{{{{ tools | length if tools }}}}"} for n in
         ("default", "tool_use", "rag")]  # fmt: skip
