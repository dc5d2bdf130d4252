import torch, time, os, sys, json
from pathlib import Path
from dataclasses import replace
t0=time.time()
torch.set_float32_matmul_precision("high")
from infinitevl.train.recipes import nano
from infinitevl.train.pipeline import *
from infinitevl.train.pipeline import _stage
from infinitevl.train.loop import Settings
print('import',time.time()-t0, os.cpu_count(), flush=True)
r=nano(); out=Path('/tmp/nano'); st=Settings(workers=14)
def pts(n): return [json.loads(x) for x in open(out/n/'metrics.jsonl')]
stages=[replace(s,steps=n) for s,n in zip(r.stages,(500,30,30,60,20))]
t=time.time(); teacher=_stage(r,stages[0],new_teacher(r),None,out,st).cuda(); print('teacher',time.time()-t)
p=pts('teacher'); print([round(x['loss'],3) for x in p[::25]], sorted(x['tokens_per_second'] for x in p)[len(p)//2])
student=new_student(r,teacher,out)
for s in stages[1:]:
    t=time.time(); student=_stage(r,s,student,teacher if s.needs_teacher else None,out,st); p=pts(s.name)
    print(s.name,time.time()-t,[round(x['loss'],3) for x in p[::max(1,len(p)//8)]], sorted(x['tokens_per_second'] for x in p)[len(p)//2], torch.cuda.max_memory_allocated()/2**30, flush=True)
# profile one sft step
from infinitevl.train.stages import *
from infinitevl.data.encode import Encoder
from infinitevl.data.worlds import WorldBatches
enc=Encoder(student.processor,student.config,max_tokens=1920,min_pixels=784,max_pixels=112*112)
b=WorldBatches(stages[3].data,enc,rows=32,tokens=1920,steps=1,seed=0,size=112)[0].to('cuda'); print('fill',b.tokens/(32*1920))
student=student.cuda(); select(student,'language')
for k in range(3):
    torch.cuda.synchronize(); t=time.time()
    with torch.autocast('cuda',dtype=torch.bfloat16): l=backward_step(stages[3],student,None,b,lambda x:x.backward())
    t1=time.time()-t; torch.cuda.synchronize(); print('step launch',t1,'total',time.time()-t)
from torch.profiler import profile, ProfilerActivity
with profile(activities=[ProfilerActivity.CUDA,ProfilerActivity.CPU]) as prof:
    with torch.autocast('cuda',dtype=torch.bfloat16): backward_step(stages[3],student,None,b,lambda x:x.backward())
    torch.cuda.synchronize()
print(prof.key_averages().table(sort_by='cuda_time_total',row_limit=22,max_name_column_width=50)[:6000])
