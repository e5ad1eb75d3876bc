"""The whole of lorry from outside: real commands, real practice cloud, real SSH, rsync and training."""
