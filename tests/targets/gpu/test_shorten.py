"""Shaders with fewer statements and letters: text in, text out. Other tests run them."""

from __future__ import annotations

import numpy as np
import pytest

from deepzig.targets.gpu.brackets import unbracketed
from deepzig.targets.gpu.compact import DOTS, compacted
from deepzig.targets.gpu.shorten import shortened
from deepzig.targets.gpu.spelling import spelled
from deepzig.targets.gpu.templates import templates

TEXT = """fn k() {
  var v : array<f32, 1>;
  var v_1 : array<i32, 1>;
  var v_2 : array<f32, 4>;
  v[0i] = x_ptr[3i];
  let v_3 : f32 = v[0i];
  v_1[0i] = (3i + n);
  v_1[0i] = (v_1[0i] - -1i);
  let v_4 : i32 = (podArgs.n * 7i);
  for (var v_5 : i32 = 0i; v_5 < 4i; v_5++) {
    let v_6 : i32 = (v_5 + (podArgs.n * 7i));
    v_2[0i] = (v_2[0i] + y_ptr[(v_5 + (podArgs.n * 7i))]);
  }
  v_2[1i] = f32((v_5 + (podArgs.n * 7i)));
  if (podArgs.n * 7i) {
    v_1[0i] = vec4<i32>(podArgs.n * 7i)[0];
  }
}
"""
SHORT = """fn k(){
var v_1:i32;
var v_2:array<f32,4>;
let v_3=x_ptr[3i];
v_1=(3i+n);
v_1=(v_1 - -1i);
let v_4=(podArgs.n*7i);
for(var v_5:i32=0i;v_5<4i;v_5++){
let v_6=(v_5+v_4);
v_2[0i]=(v_2[0i]+y_ptr[v_6]);
}
v_2[1i]=f32((v_5+v_4));
if(podArgs.n*7i){
v_1=vec4<i32>(podArgs.n*7i)[0];
}
}
"""


def test_shorter_text() -> None:
    """A name of a block is not used after it."""
    assert shortened(TEXT) == SHORT


HEAD = """@group(0)@binding(0)var<storage,read>x_ptr:array<f32>;
@group(0)@binding(1)var<storage,read_write>y_ptr:array<f32>;
struct PODArgs{
n:i32,
packGridDimX:u32
}
@group(0)@binding(2)var<uniform>podArgs:PODArgs;
var<workgroup>held:array<f32,64>;
"""
MAIN = """@compute @workgroup_size(64,1,1)
fn some_kernel(
@builtin(workgroup_id)blockIdx:vec3<u32>,
@builtin(num_workgroups)gridDim:vec3<u32>,
@builtin(local_invocation_id)threadIdx:vec3<u32>
){
let tx=i32(threadIdx.x);
"""


def body(text: str) -> str:
    """A kernel; lines of its body are indented as one likes."""
    return MAIN + "".join(f"{line.strip()}\n" for line in text.strip().splitlines()) + "}\n"


CASES = {
    "what is repeated gets a name, in the innermost block that has all of it": (
        """
        y_ptr[((tx>>5u)*16000i)]=1.0f;
        if(tx<3i){
        y_ptr[(((tx>>5u)*16000i)+1i)]=2.0f;
        }
        for(var v:i32=0i;v<podArgs.n;v++){
        y_ptr[((v*512i)+(tx*40i))]=x_ptr[((v*512i)+(tx*40i))];
        }
        """,
        """
        let e_0=((tx>>5u)*16000i);
        y_ptr[e_0]=1.0f;
        if(tx<3i){
        y_ptr[(e_0+1i)]=2.0f;
        }
        for(var v:i32=0i;v<podArgs.n;v++){
        let e_1=((v*512i)+(tx*40i));
        y_ptr[e_1]=x_ptr[e_1];
        }
        """,
    ),
    "what may change gets none": (
        """
        var v:i32;
        v=tx;
        y_ptr[((v*512i)+(tx&1i))]=1.0f;
        v=(v+1i);
        y_ptr[((v*512i)+(tx&1i))]=(y_ptr[(y_ptr[3i]*77i)]+y_ptr[(y_ptr[3i]*77i)]);
        """,
        None,
    ),
    "a variable that is stored once is bound": (
        """
        var v:i32;
        var v_1:i32;
        var v_2:i32;
        v=(tx*2i);
        y_ptr[v]=x_ptr[(v+1i)];
        if(tx<3i){
        v_1=tx;
        }
        y_ptr[v_1]=1.0f;
        for(var v_3:i32=0i;v_3<4i;v_3++){
        y_ptr[v_2]=2.0f;
        v_2=v_3;
        }
        """,
        """
        var v_1:i32;
        var v_2:i32;
        let v=(tx*2i);
        y_ptr[v]=x_ptr[(v+1i)];
        if(tx<3i){
        v_1=tx;
        }
        y_ptr[v_1]=1.0f;
        for(var v_3:i32=0i;v_3<4i;v_3++){
        y_ptr[v_2]=2.0f;
        v_2=v_3;
        }
        """,
    ),
    "copies and what is unused go, exchanges stay": (
        """
        y_ptr[tx]=0.0f;
        let v=(tx+1i);
        let v_1=v;
        let v_2=(v_1*3i);
        let v_3=dz_shuffle_xor(v,16i);
        let v_4=dz_shuffle_xor(v_1,8i);
        y_ptr[v_1]=f32(v_4);
        """,
        """
        y_ptr[tx]=0.0f;
        let v=(tx+1i);
        let v_3=dz_shuffle_xor(v,16i);
        let v_4=dz_shuffle_xor(v,8i);
        y_ptr[v]=f32(v_4);
        """,
    ),
    "what the next statement alone uses stands there": (
        """
        let v=x_ptr[tx];
        y_ptr[tx]=v;
        let v_1=held[tx];
        workgroupBarrier();
        y_ptr[3i]=v_1;
        """,
        """
        y_ptr[tx]=x_ptr[tx];
        let v_1=held[tx];
        workgroupBarrier();
        y_ptr[3i]=v_1;
        """,
    ),
    "zeros, choices of two elements, and conditions in a row": (
        """
        var v:array<f32,3>;
        v[0i]=0.000000e+00f;
        v[1i]=0.000000e+00f;
        v[2i]=0.000000e+00f;
        v[0i]=0.000000e+00f;
        v[1i]=0.000000e+00f;
        v[2i]=0.000000e+00f;
        v[0i]=0.000000e+00f;
        v[2i]=0.000000e+00f;
        var condval:f32;
        if((tx<3i)){
        condval=v[0i];
        }else{
        condval=v[1i];
        }
        y_ptr[tx]=(condval*condval);
        if(tx<podArgs.n){
        y_ptr[0i]=1.0f;
        }
        if(tx<podArgs.n){
        y_ptr[1i]=1.0f;
        }
        if(x_ptr[0i]<1.0f){
        y_ptr[2i]=1.0f;
        }
        if(x_ptr[0i]<1.0f){
        y_ptr[3i]=1.0f;
        }
        """,
        """
        var v:array<f32,3>;
        v=array<f32,3>();
        v[0i]=0.000000e+00f;
        v[2i]=0.000000e+00f;
        let condval=select(v[1i],v[0i],(tx<3i));
        y_ptr[tx]=(condval*condval);
        if(tx<podArgs.n){
        y_ptr[0i]=1.0f;
        y_ptr[1i]=1.0f;
        }
        if(x_ptr[0i]<1.0f){
        y_ptr[2i]=1.0f;
        }
        if(x_ptr[0i]<1.0f){
        y_ptr[3i]=1.0f;
        }
        """,
    ),
}


@pytest.mark.parametrize(("before", "after"), CASES.values(), ids=CASES)
def test_fewer_statements(before: str, after: str | None) -> None:
    assert compacted(HEAD + body(before)) == HEAD + body(before if after is None else after)


def test_four_elements_are_loaded_by_a_function() -> None:
    load = "fn x_ptr_four(i:i32)->vec4<f32>{return vec4<f32>(x_ptr[i],x_ptr[i+1],x_ptr[i+2],x_ptr[i+3]);}\n"
    before = """
        y_ptr[tx]=0.0f;
        let v=(tx*4i);
        let v_1:vec4<f32>=vec4<f32>(x_ptr[v+0],x_ptr[v+1],x_ptr[v+2],x_ptr[v+3]);
        y_ptr[v]=((v_1)[0]+(v_1)[3]);
    """
    after = """
        y_ptr[tx]=0.0f;
        let v=(tx*4i);
        let v_1:vec4<f32>=x_ptr_four(v);
        y_ptr[v]=((v_1)[0]+(v_1)[3]);
    """
    assert compacted(HEAD + body(before)) == HEAD + load + body(after)


def test_products_of_four_words_are_one_call() -> None:
    def chain(weights: str) -> str:
        calls = [
            f"dz_dot4(bitcast<i32>({weights.replace('W', f'(v_1)[{i}]')}),bitcast<i32>((v_2)[{i}]),"
            for i in (3, 2, 1, 0)
        ]
        return "".join(calls) + "held[(tx+1i)]))))"

    sign, whole = chain("(W&15u)"), chain("W")
    shifted, other = chain("((W>>4u)&15u)"), chain("W").replace("(v_2)[1]", "(v_3)[1]")
    before = "".join(f"y_ptr[tx]=f32({text});\n" for text in (sign, whole, shifted, other))
    after = f"""
        y_ptr[tx]=f32(dz_dots((v_1&vec4<u32>(15u)),v_2,held[(tx+1i)]));
        y_ptr[tx]=f32(dz_dots(v_1,v_2,held[(tx+1i)]));
        y_ptr[tx]=f32(dz_dots(((v_1>>vec4<u32>(4u))&vec4<u32>(15u)),v_2,held[(tx+1i)]));
        y_ptr[tx]=f32({other});
    """
    assert compacted(HEAD + body(before)) == HEAD + DOTS + body(after)


def test_fewer_letters() -> None:
    """The names that are used most become the shortest; those of WGSL, and members, stay."""
    before = """
        let v_1:vec4<f32>=vec4<f32>(x_ptr[tx],1.280000e+02f,1.000000e-06f,-3.000000e+38f);
        for(var v_2:i32=0i;v_2<podArgs.n;v_2++){
        y_ptr[(v_2+16i)]=(((v_1)[0]+(v_1)[3])+bitcast<f32>(7i));
        }
    """
    assert spelled(HEAD + body(before)) == (
        "@group(0)@binding(0)var<storage,read>c:array<f32>;@group(0)@binding(1)var<storage,read_write>d:array<f32>;"
        "struct e{f:i32,j:u32}@group(0)@binding(2)var<uniform>g:e;var<workgroup>k:array<f32,64>;"
        "@compute @workgroup_size(64,1,1)fn main(@builtin(workgroup_id)l:vec3u,"
        "@builtin(num_workgroups)m:vec3u,@builtin(local_invocation_id)h:vec3u){"
        "let i=i32(h.x);let b=vec4f(c[i],128f,1e-6f,-3e38f);for(var a:i32=0;a<g.f;a++){"
        "d[a+16]=b.x+b.w+bitcast<f32>(7i);}}"
    )


BRACKETS = [
    ("x=((i32(b.y)*16)+(z*2));", "x=i32(b.y)*16+z*2;"),
    ("y[((((p*512)+((c&3)*128))+(c>>2u))+g)]=(q*n[(c&3)]);", "y[p*512+(c&3)*128+(c>>2u)+g]=q*n[c&3];"),
    ("let x=((a-b)-(c-d));", "let x=a-b-(c-d);"),
    ("let x=((a*b)/(c*d));", "let x=a*b/(c*d);"),
    ("let x=(a+(b+c));", "let x=a+(b+c);"),
    ("let x=(a - -(b+c));", "let x=a- -(b+c);"),
    ("let x=(-1*(-a));", "let x=-1*(-a);"),
    ("if((((c&3)<(k.m -a))&&((g%4)==0))){", "if(((c&3)<k.m-a)&&(g%4==0)){"),
    ("if(!(a<b)){", "if(!(a<b)){"),
    ("let x=(0<(u&16));", "let x=0<(u&16);"),
    ("let x=select(0f,v.x,(a<b));", "let x=select(0f,v.x,(a<b));"),
    ("let x=((a+b)).x;", "let x=(a+b).x;"),
    ("let x=(w[(a+1)])[0];", "let x=w[a+1][0];"),
    ("let x=bitcast<i32>((a^b));", "let x=bitcast<i32>(a^b);"),
    ("x=array<f32,8>();", "x=array<f32,8>();"),
    ("for(var a:i32=0;a<((v+255)>>8u);a++){", "for(var a:i32=0;a<((v+255)>>8u);a++){"),
    ("return (a+b);", "return a+b;"),
]


@pytest.mark.parametrize(("before", "after"), BRACKETS)
def test_brackets(before: str, after: str) -> None:
    assert unbracketed(before) == after


def test_expressions_mean_the_same_without_brackets() -> None:
    """Random ones of integers, as Python, which knows the same order of these operators, computes them."""
    rng = np.random.default_rng(6)

    def expression(depth: int) -> str:
        if depth == 0 or rng.random() < 0.2:
            return str(rng.choice(["a", "b", "-3", "(-7)", "5"]))
        return f"({expression(depth - 1)}{rng.choice(['+', '-', '*', '%', '<', '=='])} {expression(depth - 1)})"

    for _ in range(300):
        text = expression(5)
        short = unbracketed(f"{text};").removesuffix(";")
        values = {"a": int(rng.integers(1, 9)), "b": int(rng.integers(-9, 0))}
        try:
            want = eval(text, values)
        except ZeroDivisionError:
            continue
        assert eval(short, values) == want and len(short) <= len(text)


def test_shaders_that_differ_in_numbers_are_one_text() -> None:
    texts = {"one": "x[12]=y*3u;z=1e-6f;", "two": "x[7]=y*3u;z=1e-5f;", "three": "x[7]=y;"}
    made, told = templates(texts)
    assert made == ["x[$]=y*3u;z=1e-$f;", "x[7]=y;"]
    assert told == {"one": [0, 12, 6], "two": [0, 7, 5], "three": [1]}
