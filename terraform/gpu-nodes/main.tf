# GPU nodes and add-ons for an EKS cluster that is there. The nodes carry the label and the taint that knative/gpu-nodes and
# k8s/ select and tolerate. NVIDIA's device plugin and the runtime class come from the GPU Operator (README.md).
provider "aws" {
  region = var.region

  default_tags {
    tags = { project = "comfyfn" }
  }
}

data "aws_partition" "current" {}

locals {
  uses_bottlerocket = startswith(var.ami_type, "BOTTLEROCKET_")

  node_policies = [
    "AmazonEKSWorkerNodePolicy",
    "AmazonEKS_CNI_Policy",
    "AmazonEC2ContainerRegistryPullOnly",
  ]
}

resource "aws_iam_role" "nodes" {
  name_prefix = "${var.name}-"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

resource "aws_iam_role_policy_attachment" "nodes" {
  for_each = toset(local.node_policies)

  role       = aws_iam_role.nodes.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/${each.key}"
}

resource "aws_launch_template" "nodes" {
  name_prefix            = "${var.name}-"
  update_default_version = true

  # One hop: a pod can't ask for the node's role.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  # Holds the images and the emptyDir volumes of the pods, among them the model cache.
  block_device_mappings {
    device_name = local.uses_bottlerocket ? "/dev/xvdb" : "/dev/xvda"

    ebs {
      volume_type           = "gp3"
      volume_size           = var.volume_size_gib
      throughput            = var.volume_throughput_mib
      iops                  = max(3000, 4 * var.volume_throughput_mib) # at most 0.25 MiB/s for each
      encrypted             = true
      delete_on_termination = true
    }
  }

  tag_specifications {
    resource_type = "instance"
    tags          = { Name = var.name, project = "comfyfn" }
  }

  tag_specifications {
    resource_type = "volume"
    tags          = { Name = var.name, project = "comfyfn" }
  }
}

resource "aws_eks_node_group" "gpu" {
  cluster_name           = var.cluster_name
  node_group_name_prefix = "${var.name}-"
  node_role_arn          = aws_iam_role.nodes.arn
  subnet_ids             = var.subnet_ids
  ami_type               = var.ami_type
  instance_types         = var.instance_types
  capacity_type          = var.capacity_type

  # GPU feature discovery of the GPU Operator sets the label too, but only once there is a node: the autoscaler, which has to
  # imagine one, reads it here.
  labels = { "nvidia.com/gpu.present" = "true" }

  taint {
    key    = "nvidia.com/gpu"
    value  = "present"
    effect = "NO_SCHEDULE"
  }

  scaling_config {
    min_size     = var.min_size
    max_size     = var.max_size
    desired_size = var.min_size
  }

  launch_template {
    id      = aws_launch_template.nodes.id
    version = aws_launch_template.nodes.latest_version
  }

  update_config {
    max_unavailable = 1
  }

  # A node whose GPU has failed, as eks-node-monitoring-agent finds it, is replaced.
  node_repair_config {
    enabled = true
  }

  lifecycle {
    create_before_destroy = true
    ignore_changes        = [scaling_config[0].desired_size] # the autoscaler's
  }

  depends_on = [aws_iam_role_policy_attachment.nodes]
}

resource "aws_eks_addon" "this" {
  for_each = var.addons

  cluster_name                = var.cluster_name
  addon_name                  = each.key
  addon_version               = each.value.version
  configuration_values        = each.value.configuration
  resolve_conflicts_on_create = "NONE"
  resolve_conflicts_on_update = "PRESERVE"
}
